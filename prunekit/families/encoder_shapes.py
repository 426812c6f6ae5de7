"""The shapes of vision encoders, read off a model's config: one formula for each way of building them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class EncoderShape:
    """A vision encoder and the projector behind it, in numbers.

    Attributes:
        width, layers, heads, mlp: of its transformer layers.
        gated: whether their MLPs have three matrices instead of two.
        patch_weights: weights of the embedding of one patch, 3·p²·width (times the frames that one patch covers).
        projector: weights that each visual token is multiplied by on its way into the decoder.
        merge: patches that become one visual token.
        patches: patches of one image or tile where all are of one size; None for encoders that take any grid.
        window: patches that attend to each other in windowed layers; None if all of an image do, everywhere.
        whole: the layers of a windowed encoder in which all of an image attend.
        joined: neighbouring frames of a video that become one.
        frame_vectors: vectors of a video's frame that meet the projector; as many as of an image if not given.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    gated: bool
    patch_weights: int
    projector: int
    merge: int
    patches: int | None = None
    window: int | None = None
    whole: tuple[int, ...] = ()
    joined: int = 1
    frame_vectors: int | None = None


def llava(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """LLaVA: an MLP of two layers maps each patch, of one encoder layer or of several side by side."""
    taken = getattr(config, "vision_feature_layer", -2)
    inputs = vision.hidden_size * (len(taken) if isinstance(taken, list | tuple) else 1)
    return _of_square_images(vision, 1, inputs * text_width + text_width**2)


def llava_next_video(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """LLaVA-NeXT-Video: squares of a frame's patches become one before the projector."""
    side = _side(vision.image_size) // _side(vision.patch_size) // config.spatial_pool_stride
    return replace(llava(config, vision, text_width), frame_vectors=side**2)


def video_llava(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Video-LLaVA: a frame keeps its CLS token."""
    return replace(llava(config, vision, text_width), frame_vectors=_patches(vision) + 1)


def gemma(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Gemma 3: patches are averaged down to a fixed number of tokens, then mapped by one matrix."""
    return _of_square_images(vision, _patches(vision) // config.mm_tokens_per_image, vision.hidden_size * text_width)


def internvl(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """InternVL: squares of patches side by side, then an MLP of two layers."""
    merge = round(1 / config.downsample_ratio) ** 2
    return _of_square_images(vision, merge, merge * vision.hidden_size * text_width + text_width**2)


def idefics(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Idefics 3 and SmolVLM: squares of patches side by side, then one matrix."""
    merge = config.scale_factor**2
    return _of_square_images(vision, merge, merge * vision.hidden_size * text_width)


def paligemma(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """PaliGemma: one matrix maps each patch."""
    return _of_square_images(vision, 1, vision.hidden_size * text_width)


def qwen2(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Qwen2-VL: its config names the encoder's width ``embed_dim`` and the decoder's ``hidden_size``."""
    width = vision.embed_dim
    return _of_any_grid(vision, width, mlp=int(width * vision.mlp_ratio), out=vision.hidden_size)


def qwen2_5(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Qwen2.5-VL: gated MLPs, and windows in all but a few layers."""
    return _of_any_grid(
        vision,
        vision.hidden_size,
        mlp=vision.intermediate_size,
        out=vision.out_hidden_size,
        gated=True,
        window=_window(vision),
        whole=tuple(vision.fullatt_block_indexes),
    )


def qwen3(config: PretrainedConfig, vision: PretrainedConfig, text_width: int) -> EncoderShape:
    """Qwen3-VL: further projectors read some of the encoder's earlier layers (DeepStack)."""
    projectors = 1 + len(set(vision.deepstack_visual_indexes))
    return _of_any_grid(
        vision, vision.hidden_size, mlp=vision.intermediate_size, out=vision.out_hidden_size, projectors=projectors
    )


def _of_square_images(vision: PretrainedConfig, merge: int, projector: int) -> EncoderShape:
    """A ViT of square images; ``merge`` patches become a visual token, which meets ``projector`` weights."""
    return EncoderShape(
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        gated=False,
        patch_weights=3 * _side(vision.patch_size) ** 2 * vision.hidden_size,
        projector=projector,
        merge=merge,
        patches=_patches(vision),
    )


def _of_any_grid(
    vision: PretrainedConfig,
    width: int,
    *,
    mlp: int,
    out: int,
    gated: bool = False,
    projectors: int = 1,
    window: int | None = None,
    whole: tuple[int, ...] = (),
) -> EncoderShape:
    """A ViT of the Qwen-VL family: each projector joins a square of patches and maps it by an MLP of two layers."""
    merge = vision.spatial_merge_size**2
    merged = width * merge
    return EncoderShape(
        width=width,
        layers=vision.depth,
        heads=vision.num_heads,
        mlp=mlp,
        gated=gated,
        patch_weights=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width,
        projector=projectors * (merged**2 + merged * out),
        merge=merge,
        window=window,
        whole=whole,
        joined=vision.temporal_patch_size,
    )


def _side(size: int | list[int]) -> int:
    return size[0] if isinstance(size, list | tuple) else size


def _patches(vision: PretrainedConfig) -> int:
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2


def _window(vision: PretrainedConfig) -> int:
    """Patches of one window: as many merged ones as the window's side holds, rounded down."""
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    return (side * vision.spatial_merge_size) ** 2
