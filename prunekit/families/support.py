"""The table of model types: one row says all that prunekit knows of a type and cannot find on the loaded model.

A new model type is a new row here. A row may point to code: an adapter in ``special_cases``, a formula in
``encoder_shapes``. Other modules ask ``support_of``; no other file names a model type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunekit.families import encoder_shapes, geometry, special_cases
from prunekit.families.base import Family
from prunekit.families.encoder_shapes import EncoderShape


@dataclass(frozen=True)
class PatchLayout:
    """How an encoder's patches become visual tokens, for families where it is known which patches each one stands for.

    By default the encoder is a plain ViT (``VISION_ENCODERS``), and the projector maps each patch to a visual token.

    Attributes:
        tiled: images are cut into tiles, whose patches are packed with newline tokens.
        packed: Qwen-VL's own encoder: images of any size in one sequence, and a merger that joins squares of patches.
        reads_output: the projector reads the encoder's output, not a layer that the config chooses.
        joins: how squares of patches become one token in a plain encoder: "shuffle" (side by side) or "pool" (their
            mean); "" for a token of each.
    """

    tiled: bool = False
    packed: bool = False
    reads_output: bool = False
    joins: str = ""


@dataclass(frozen=True)
class FamilySupport:
    """What is known of one model type.

    Attributes:
        exact: the tests hold removal equal to masking (``tests/families/test_families.py``).
        refused: why the type cannot be pruned; "" if it can.
        adapter: the subclass of ``Family`` for a type that needs more than the generic path.
        decoder: model type of the language model inside, where the adapter is due to it: any model around this decoder
            (LLaVA on Llama 4's text model) gets the same adapter.
        takes_features: an evaluation may encode each image once, apart from the decoder: answers from such features are
            those from pixels (``tests/evaluation/test_batches.py``). Other types take more than projected features from
            their encoder, or have no call that makes them, and get the pixels.
        patches: which patches stand behind each visual token; None where it is not known.
        encoder_shape: the formula (config, vision config, decoder width) for the encoder's cost; None: not counted.
        geometry: where each visual token stands in its image or video, by the model's inputs; None where that is not
            known.
        fixed_grid: every image has the same rows and columns of patches, one visual token each.
        synthetic: the benchmark can make up features in any number.
        style: how it writes boxes, and whose prompts it is asked with (``prunekit.data.boxes.STYLES``).
    """

    exact: bool = False
    refused: str = ""
    adapter: type[Family] | None = None
    decoder: str = ""
    takes_features: bool = False
    patches: PatchLayout | None = None
    encoder_shape: Callable[[Any, Any, int], EncoderShape] | None = None
    geometry: geometry.Reader | None = None
    fixed_grid: bool = False
    synthetic: bool = False
    style: str = "plain"


@dataclass(frozen=True)
class EncoderSupport:
    """What is known of a ViT over images of one size.

    Attributes:
        prefix: tokens before the patches (CLS).
        attention: the name of a block's attention module.
        clip_layout: its modules are laid out as CLIP's, so that prunekit can cut inside it.
    """

    prefix: int
    attention: str = "self_attn"
    clip_layout: bool = False


_ENCODER = "its visual tokens stand in an encoder's sequence, not in a decoder's"
_CROSS = "its visual tokens reach the decoder by cross-attention alone"

SUPPORT: dict[str, FamilySupport] = {
    "aria": FamilySupport(exact=True, takes_features=True),
    "aya_vision": FamilySupport(exact=True, takes_features=True),
    "blip-2": FamilySupport(exact=True, adapter=special_cases.QFormerLanguageModel),
    "chameleon": FamilySupport(exact=True, takes_features=True),
    "cohere2_vision": FamilySupport(exact=True, takes_features=True),
    "cohere_compass": FamilySupport(exact=True),
    "cosmos3_edge": FamilySupport(exact=True, takes_features=True),
    "cosmos3_omni": FamilySupport(exact=True),
    "deepseek_ocr2": FamilySupport(exact=True),
    "deepseek_vl": FamilySupport(exact=True, patches=PatchLayout(reads_output=True)),
    "deepseek_vl_hybrid": FamilySupport(exact=True),
    "dots3_note": FamilySupport(exact=True),
    "emu3": FamilySupport(exact=True),
    "ernie4_5_vl_moe": FamilySupport(exact=True, takes_features=True),
    "exaone4_5": FamilySupport(exact=True, takes_features=True),
    "fast_vlm": FamilySupport(exact=True, takes_features=True),
    "fuyu": FamilySupport(exact=True),
    "gemma3": FamilySupport(
        exact=True,
        patches=PatchLayout(reads_output=True, joins="pool"),
        geometry=geometry.pooled_grid,
        takes_features=True,
        encoder_shape=encoder_shapes.gemma,
    ),
    "gemma3n": FamilySupport(exact=True, takes_features=True, adapter=special_cases.Gemma3n, decoder="gemma3n_text"),
    "gemma4": FamilySupport(exact=True),
    "gemma4_unified": FamilySupport(exact=True),
    "glm46v": FamilySupport(exact=True, takes_features=True),
    "glm4v": FamilySupport(
        exact=True, patches=PatchLayout(packed=True), geometry=geometry.merged_grids, takes_features=True
    ),
    "glm4v_moe": FamilySupport(
        exact=True, patches=PatchLayout(packed=True), geometry=geometry.merged_grids, takes_features=True
    ),
    "glm5_next": FamilySupport(
        exact=True, takes_features=True, adapter=special_cases.Glm5Next, decoder="glm5_next_text"
    ),
    "glm_ocr": FamilySupport(exact=True, takes_features=True),
    "glmga": FamilySupport(exact=True, takes_features=True),
    "got_ocr2": FamilySupport(exact=True, takes_features=True),
    "granite4_vision": FamilySupport(exact=True),
    "granite_docling": FamilySupport(exact=True),
    "hunyuan_vl": FamilySupport(exact=True, takes_features=True),
    "hyperclovax_vision_v2": FamilySupport(exact=True, takes_features=True),
    "idefics2": FamilySupport(exact=True, takes_features=True),
    "idefics3": FamilySupport(
        exact=True,
        patches=PatchLayout(reads_output=True, joins="shuffle"),
        geometry=geometry.tiles_in_text,
        takes_features=True,
        encoder_shape=encoder_shapes.idefics,
    ),
    "inkling2": FamilySupport(exact=True, takes_features=True, adapter=special_cases.Inkling2, decoder="inkling2_text"),
    "inkling_mm_model": FamilySupport(exact=True, adapter=special_cases.Inkling, decoder="inkling_text"),
    "instructblip": FamilySupport(exact=True, adapter=special_cases.QFormerLanguageModel),
    "instructblipvideo": FamilySupport(exact=True, adapter=special_cases.QFormerLanguageModel),
    "internvl": FamilySupport(
        exact=True,
        patches=PatchLayout(joins="shuffle"),
        geometry=geometry.shuffled_tiles,
        takes_features=True,
        encoder_shape=encoder_shapes.internvl,
        style="internvl",
    ),
    "janus": FamilySupport(exact=True),
    "kimi_k25": FamilySupport(exact=True, takes_features=True),
    "kosmos-2": FamilySupport(exact=True, adapter=special_cases.Kosmos),
    "kosmos-2.5": FamilySupport(exact=True, adapter=special_cases.Kosmos),
    "lfm2_vl": FamilySupport(exact=True),
    "lfm3_vl": FamilySupport(exact=True, takes_features=True),
    "lighton_ocr": FamilySupport(exact=True, takes_features=True),
    "llama4": FamilySupport(exact=True, adapter=special_cases.Llama4, decoder="llama4_text"),
    "llava": FamilySupport(
        exact=True,
        geometry=geometry.fixed_grid,
        takes_features=True,
        patches=PatchLayout(),
        encoder_shape=encoder_shapes.llava,
        fixed_grid=True,
        synthetic=True,
        style="llava",
    ),
    "llava_next": FamilySupport(
        exact=True,
        geometry=geometry.tiled,
        takes_features=True,
        patches=PatchLayout(tiled=True),
        encoder_shape=encoder_shapes.llava,
        synthetic=True,
    ),
    "llava_next_video": FamilySupport(
        exact=True,
        geometry=geometry.tiled,
        takes_features=True,
        patches=PatchLayout(tiled=True),
        encoder_shape=encoder_shapes.llava_next_video,
    ),
    "llava_onevision": FamilySupport(
        exact=True,
        geometry=geometry.tiled,
        takes_features=True,
        patches=PatchLayout(tiled=True),
        encoder_shape=encoder_shapes.llava,
        synthetic=True,
    ),
    "minicpm_ocr": FamilySupport(exact=True),
    "minicpmv4_6": FamilySupport(exact=True, geometry=geometry.slices_in_text, patches=PatchLayout(packed=True)),
    "minicpmv4_7": FamilySupport(exact=True),
    "minimax_m3_vl": FamilySupport(
        exact=True, takes_features=True, adapter=special_cases.MiniMaxM3, decoder="minimax_m3_vl_text"
    ),
    "mistral3": FamilySupport(exact=True, patches=PatchLayout(), geometry=geometry.merged_sizes, takes_features=True),
    "mistral_large4": FamilySupport(
        exact=True, takes_features=True, adapter=special_cases.MistralLarge4, decoder="mistral_large4_text"
    ),
    "molmo2": FamilySupport(exact=True),
    "muse_glimmer": FamilySupport(exact=True, takes_features=True),
    "muse_spark": FamilySupport(exact=True, takes_features=True),
    "nemotron_h_omni": FamilySupport(exact=True),
    "ovis2": FamilySupport(exact=True),
    "paddleocr_vl": FamilySupport(exact=True, takes_features=True),
    "paligemma": FamilySupport(
        exact=True,
        geometry=geometry.fixed_grid,
        takes_features=True,
        patches=PatchLayout(reads_output=True),
        encoder_shape=encoder_shapes.paligemma,
        style="paligemma",
    ),
    "perception_lm": FamilySupport(exact=True),
    "pp_chart2table": FamilySupport(exact=True, takes_features=True),
    "qianfan_ocr": FamilySupport(exact=True, takes_features=True),
    "qwen2_vl": FamilySupport(
        exact=True,
        geometry=geometry.merged_grids,
        takes_features=True,
        patches=PatchLayout(packed=True),
        encoder_shape=encoder_shapes.qwen2,
        synthetic=True,
        style="qwen2",
    ),
    "qwen2_5_omni_thinker": FamilySupport(exact=True, takes_features=True),
    "qwen2_5_vl": FamilySupport(
        exact=True,
        geometry=geometry.merged_grids,
        takes_features=True,
        patches=PatchLayout(packed=True),
        encoder_shape=encoder_shapes.qwen2_5,
        synthetic=True,
        style="qwen2.5",
    ),
    "qwen3_5": FamilySupport(exact=True, takes_features=True),
    "qwen3_5_moe": FamilySupport(exact=True, takes_features=True),
    "qwen3_omni_moe_thinker": FamilySupport(exact=True),
    "qwen3_vl": FamilySupport(
        exact=True,
        geometry=geometry.merged_grids,
        patches=PatchLayout(packed=True),
        encoder_shape=encoder_shapes.qwen3,
        style="qwen3",
    ),
    "qwen3_vl_moe": FamilySupport(
        exact=True,
        geometry=geometry.merged_grids,
        patches=PatchLayout(packed=True),
        encoder_shape=encoder_shapes.qwen3,
        style="qwen3",
    ),
    "qwen4_exp": FamilySupport(exact=True, takes_features=True, adapter=special_cases.Qwen4, decoder="qwen4_exp_text"),
    "shieldgemma2": FamilySupport(exact=True, takes_features=True),
    "smolvlm": FamilySupport(
        exact=True,
        patches=PatchLayout(reads_output=True, joins="shuffle"),
        geometry=geometry.tiles_in_text,
        takes_features=True,
        encoder_shape=encoder_shapes.idefics,
    ),
    "step3p7": FamilySupport(exact=True),
    "unlimited_ocr": FamilySupport(exact=True),
    "video_llama_3": FamilySupport(exact=True, geometry=geometry.merged_grids, patches=PatchLayout(packed=True)),
    "video_llava": FamilySupport(
        exact=True,
        geometry=geometry.frames_with_cls,
        takes_features=True,
        patches=PatchLayout(),
        encoder_shape=encoder_shapes.video_llava,
    ),
    "vipllava": FamilySupport(exact=True, takes_features=True),
    # refused
    "blip": FamilySupport(refused=_CROSS),
    "diffusion_gemma": FamilySupport(refused="it writes text by block diffusion, not token by token"),
    "evolla": FamilySupport(refused="its input is a protein, and reaches the decoder by cross-attention"),
    "florence2": FamilySupport(refused=_ENCODER),
    "git": FamilySupport(refused="its picture is a prefix without placeholders in input_ids"),
    "idefics": FamilySupport(refused=_CROSS),
    "inkling2_loop": FamilySupport(
        refused="some of its layers run several times in a forward pass, each time over the whole sequence"
    ),
    "mistral4": FamilySupport(refused="it is a language model without pictures"),
    "mllama": FamilySupport(refused=_CROSS),
    "pi0": FamilySupport(refused="it makes actions by flow matching, not text"),
    "pix2struct": FamilySupport(refused=_CROSS),
    "pp_formulanet": FamilySupport(refused=_CROSS),
    "t5gemma2": FamilySupport(refused=_ENCODER),
    "udop": FamilySupport(refused=_ENCODER),
    "vision-encoder-decoder": FamilySupport(refused=_CROSS),
}
"""By model type of the whole model; in order of names, Qwen2 before Qwen2.5 as they came."""

VISION_ENCODERS: dict[str, EncoderSupport] = {
    "clip_vision_model": EncoderSupport(prefix=1, clip_layout=True),
    "siglip_vision_model": EncoderSupport(prefix=0, clip_layout=True),
    "idefics3_vision": EncoderSupport(prefix=0),
    "internvl_vision": EncoderSupport(prefix=1, attention="attention"),
    "smolvlm_vision": EncoderSupport(prefix=0),
}
"""By model type of the vision config, for encoders that many families share."""

UNKNOWN = FamilySupport()


def support_of(model_type: str) -> FamilySupport:
    """What is known of a model type: its row, or one that claims nothing."""
    return SUPPORT.get(model_type, UNKNOWN)


EXACT: tuple[str, ...] = tuple(sorted(name for name, row in SUPPORT.items() if row.exact))
"""Model types whose removal the tests hold equal to masking."""

REFUSED: dict[str, str] = {name: row.refused for name, row in SUPPORT.items() if row.refused}
"""Model types that are refused at ``apply``, with the reason."""

FAMILIES: dict[str, type[Family]] = {name: row.adapter for name, row in SUPPORT.items() if row.adapter}
"""Model types that need more than the generic path."""

DECODERS: dict[str, type[Family]] = {
    row.decoder: row.adapter for row in SUPPORT.values() if row.decoder and row.adapter
}
"""Decoders that bring their adapter along into any model around them."""
