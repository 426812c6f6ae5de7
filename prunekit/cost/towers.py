"""The vision tower of a model, read off its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.cost.shapes import Stack, Tower
from prunekit.families import support_of
from prunekit.families.support import VISION_ENCODERS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def tower_of(config: PretrainedConfig, text_width: int) -> Tower | None:
    """The vision tower and projector of a model's config: a ViT over images or tiles of one size, or one over grids of
    patches (Qwen). None for model types without a formula in the table of families, and encoders of other kinds."""
    formula = support_of(getattr(config, "model_type", "")).encoder_shape
    if formula is None:
        return None
    try:
        shape = formula(config, config.vision_config, text_width)
        encoder = VISION_ENCODERS.get(config.vision_config.model_type)
    except (AttributeError, TypeError):
        return None
    if shape.patches is not None and encoder is None:  # a ViT that may add tokens, or merge them, in its own way
        return None
    return Tower(
        Stack(hidden=shape.width, layers=shape.layers, heads=shape.heads, mlp=shape.mlp, gated=shape.gated),
        patch_weights=shape.patch_weights,
        projector=shape.projector,
        merge=shape.merge,
        patches=shape.patches,
        extra=0 if encoder is None else encoder.prefix,
        window=shape.window,
        whole=shape.whole,
        joined=shape.joined,
        frame_vectors=shape.frame_vectors,
    )
