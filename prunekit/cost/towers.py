"""The vision tower of a model, read off its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunekit.cost.shapes import Stack, Tower


def tower_of(config: Any, text_width: int) -> Tower | None:
    """The vision tower and projector of a model's config: a ViT over images or tiles of one size, or one over grids of
    patches (Qwen). None for model types that ``TOWERS`` does not list, and encoders of other kinds."""
    read = TOWERS.get(getattr(config, "model_type", ""))
    try:
        return None if read is None else read(config, config.vision_config, text_width)
    except (AttributeError, TypeError):
        return None


def _tiles(vision: Any, merge: int, projector: int) -> Tower | None:
    """A ViT of square images; ``merge`` patches become a visual token, which meets ``projector`` weights."""
    if vision.model_type not in PLAIN:
        return None
    width, patch = vision.hidden_size, _side(vision.patch_size)
    stack = Stack(
        hidden=width,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        gated=False,
    )
    return Tower(
        stack,
        patch_weights=3 * patch**2 * width,
        projector=projector,
        merge=merge,
        patches=_patches(vision),
        extra=int(vision.model_type in ("clip_vision_model", "internvl_vision")),
    )


def _side(size: int | list[int]) -> int:
    return size[0] if isinstance(size, list | tuple) else size


def _patches(vision: Any) -> int:
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2


def _llava(config: Any, vision: Any, text: int) -> Tower | None:
    taken = getattr(config, "vision_feature_layer", -2)
    inputs = vision.hidden_size * (len(taken) if isinstance(taken, list | tuple) else 1)
    return _tiles(vision, 1, inputs * text + text**2)


def _gemma(config: Any, vision: Any, text: int) -> Tower | None:
    return _tiles(vision, _patches(vision) // config.mm_tokens_per_image, vision.hidden_size * text)


def _internvl(config: Any, vision: Any, text: int) -> Tower | None:
    merge = round(1 / config.downsample_ratio) ** 2
    return _tiles(vision, merge, merge * vision.hidden_size * text + text**2)


def _idefics(config: Any, vision: Any, text: int) -> Tower | None:
    merge = config.scale_factor**2
    return _tiles(vision, merge, merge * vision.hidden_size * text)


def _paligemma(config: Any, vision: Any, text: int) -> Tower | None:
    return _tiles(vision, 1, vision.hidden_size * text)


def _qwen(config: Any, vision: Any, text: int) -> Tower:
    older, windowed = vision.model_type.startswith("qwen2_vl"), vision.model_type.startswith("qwen2_5")
    width = vision.embed_dim if older else vision.hidden_size
    out = vision.hidden_size if older else vision.out_hidden_size
    mlp = int(width * vision.mlp_ratio) if older else vision.intermediate_size
    merge, patch = vision.spatial_merge_size**2, vision.patch_size**2
    merged = width * merge
    projectors = 1 + len(set(getattr(vision, "deepstack_visual_indexes", ())))
    return Tower(
        Stack(hidden=width, layers=vision.depth, heads=vision.num_heads, mlp=mlp, gated=windowed),
        patch_weights=vision.in_channels * vision.temporal_patch_size * patch * width,
        projector=projectors * (merged**2 + merged * out),
        merge=merge,
        window=_window(vision) if windowed else None,
        whole=tuple(vision.fullatt_block_indexes) if windowed else (),
    )


def _window(vision: Any) -> int:
    """Patches of one window: as many merged ones as the window's side holds, rounded down."""
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    return (side * vision.spatial_merge_size) ** 2


PLAIN = ("clip_vision_model", "siglip_vision_model", "internvl_vision", "idefics3_vision", "smolvlm_vision")
TOWERS: dict[str, Callable[[Any, Any, int], Tower | None]] = {
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), _llava),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _qwen),
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "gemma3": _gemma,
    "internvl": _internvl,
    "paligemma": _paligemma,
}
"""Model types whose vision encoder is counted."""
