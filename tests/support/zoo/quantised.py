"""Pictures as tokens of a codebook or as raw patches (Chameleon, Emu3, Janus, Fuyu), and towers of the SAM kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import CLIP, IMAGE, OLD, SIGLIP, TEXT, Layout, Media, Runs, add, construct_default, fixed, sized, text

# A family a few lines:
# fmt: off

BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k != "model_type"}
CODES = range(101, 109)  # the eight codes of a picture stand in the vocabulary
VQ: dict[str, Any] = dict(embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1, 1])
SAM: dict[str, Any] = dict(
    hidden_size=24, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=4,
    window_size=4, global_attn_indexes=[1], mlp_dim=32,
)


def _unit_codes(model: Any) -> None:
    """Codes of one small length, so that the direction of a patch decides its code, not its size."""
    codes = model.model.vqmodel.quantize.embedding.weight
    codes.copy_(0.05 * torch.nn.functional.normalize(codes, dim=1))


def chameleon(**changes: Any) -> dict[str, Any]:
    """Chameleon; its 30B kind norms after each block."""
    return TEXT | changes | dict(vq_config=VQ | dict(num_embeddings=8, resolution=16),
    vocabulary_map={"<image>": IMAGE} | {f"IMGIMG{chr(65 + i)}Z": code for i, code in enumerate(CODES)})


add("chameleon", chameleon, fixed(16))
add("chameleon_swin", lambda: chameleon(swin_norm=True), fixed(16), kind="chameleon")
add("emu3", lambda: dict(
    text_config=TEXT,
    vq_config=VQ | dict(codebook_size=8, latent_channels=32, hidden_size=32, attn_resolutions=[], num_res_blocks=1),
    vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 119}
    | {f"<|visual token {i:06d}|>": code for i, code in enumerate(CODES)}),
    sized(lambda h, w: h // 4 * (w // 4 + 1), ((16, 16), (8, 16), (16, 8))), tune=_unit_codes)
add("janus", lambda: dict(
    text_config=text("llama"), image_token_id=IMAGE, vision_config=BARE | dict(projection_dim=32, num_image_tokens=16),
    vq_config=VQ | dict(num_embeddings=8, projection_dim=32, image_token_embed_dim=32, num_res_blocks=1)),
    fixed(16))


def _fuyu(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Patches of all pictures, one after another; a newline after each row."""
    flat = [[(4, 4), (2, 4), (3, 3)][size] for sample in pictures for size in sample]
    runs: Runs = [[] for _ in pictures]
    for run, sample in zip(runs, pictures, strict=True):
        for size in sample:
            rows, columns = [(4, 4), (2, 4), (3, 3)][size]
            run.append(([IMAGE] * columns + [118]) * rows)
    pixels = torch.randn(1, sum(h * w for h, w in flat), 48, generator=generator)
    return {"image_patches" if OLD else "pixel_values": pixels}, runs


add("fuyu", lambda: dict(
    text_config=text("persimmon", partial_rotary_factor=0.5, hidden_act="relu2"), image_size=16, patch_size=4,
    image_token_id=IMAGE, **({"hidden_size": 32} if OLD else {})),
    _fuyu)
def _eager_tower(config: Any, attn: str) -> nn.Module:
    """The SAM tower of GOT has no SDPA, its decoder does."""
    return construct_default(config, {"vision_config": "eager", "text_config": attn})


for _name in ("got_ocr2", "pp_chart2table"):
    add(_name, lambda: dict(text_config=text("qwen2"), vision_config=SAM, image_token_index=IMAGE),
        fixed(9, (3, 48, 48)), build=_eager_tower)
add("deepseek_vl_hybrid", lambda: dict(
    text_config=text("llama"), image_token_id=IMAGE, vision_config=SIGLIP,
    high_res_vision_config=SAM | {"model_type": "sam_vision_model"}),
    fixed(16, high_res_pixel_values=lambda n: torch.linspace(-2, 2, n * 3 * 48 * 48).view(n, 3, 48, 48).sin()))


def _views(base: int, local: int, grid: bool) -> Media:
    """A whole view and, of some pictures, local views."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        views = [[1, 0, 2][size] for sample in pictures for size in sample]
        inputs: dict[str, Any] = {"pixel_values": torch.randn(len(views), 3, 48, 48, generator=generator)}
        inputs["pixel_values_local"] = torch.randn(sum(views), 3, 48, 48, generator=generator)
        inputs["num_local_patches"] = views
        if grid:
            inputs["patches_grid"] = [(1, n) for n in views]
        runs = [[[IMAGE] * (base + local * [1, 0, 2][size]) for size in sample] for sample in pictures]
        return inputs, runs

    return media


def _few_queries(config: Any, attn: str) -> nn.Module:
    """DeepSeek-OCR 2 hard-codes 144 queries; seven do here."""
    model = construct_default(config, attn)
    model.model.vision_tower.query_768_resolution = nn.Embedding(7, 24)
    return model


OCR_TEXT = TEXT | dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16)
OCR_SAM = SAM | dict(downsample_channels=[12, 24])
add("deepseek_ocr2", lambda: dict(
    text_config=OCR_TEXT | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, image_token_id=IMAGE,
    vision_config=dict(
        sam_config=OCR_SAM,
        encoder_config=TEXT | dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))),
    _views(8, 7, grid=False), build=_few_queries)
add("unlimited_ocr", lambda: dict(
    text_config=OCR_TEXT | {"sliding_window": 4, "num_key_value_heads": 4}, image_token_id=IMAGE,
    vision_config=dict(sam_config=OCR_SAM, encoder_config=BARE | dict(image_size=12))),
    _views(13, 12, grid=True))
