"""Shapes read off models and configs."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from prunekit.cost.shapes import ModelShape, Stack, Tower
from prunekit.errors import PrunekitError
from prunekit.families import Family, make_family

CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k")
"""Names under which configs say how many experts a token is sent to."""


def shape_of(source: Any) -> ModelShape:
    """The shape of a model, or of the model that a config describes (built without memory for its weights).

    The weights of each decoder layer are counted on its modules, so grouped keys, chosen experts and layers that differ
    from each other come out as they are.

    Raises:
        PrunekitError: if no decoder is found, or the config is not that of a vision-language model.
    """
    model = source if isinstance(source, nn.Module) else _without_memory(source)
    family = make_family(model)
    config = family.text_config
    return ModelShape(
        text=_decoder(family, config),
        vocab=int(getattr(config, "vocab_size", 0)),
        vision=tower_of(family.config, config.hidden_size),
        name=family.model_type,
    )


def tower_of(config: Any, text_width: int) -> Tower | None:
    """The vision tower of a model's config: a ViT over images or tiles of one size with a two-layer projector (LLaVA),
    or Qwen2-VL's and Qwen2.5-VL's over grids of patches. None for other layouts."""
    vision, kind = getattr(config, "vision_config", None), getattr(config, "model_type", "")
    try:
        if kind in ("qwen2_vl", "qwen2_5_vl"):
            return _grid_tower(vision)
        if kind in ("llava", "llava_next"):
            return _tile_tower(vision, config, text_width)
    except (AttributeError, TypeError):
        pass
    return None


def _tile_tower(vision: Any, config: Any, text_width: int) -> Tower:
    width, side = vision.hidden_size, vision.image_size // vision.patch_size
    stack = Stack(
        hidden=width,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        gated=False,
    )
    taken = getattr(config, "vision_feature_layer", -2)
    inputs = width * (len(taken) if isinstance(taken, list | tuple) else 1)
    return Tower(
        stack,
        patch_weights=3 * vision.patch_size**2 * width,
        projector=inputs * text_width + text_width**2,
        patches=side**2,
        extra=int("clip" in vision.model_type),
    )


def _grid_tower(vision: Any) -> Tower:
    newer = vision.model_type.startswith("qwen2_5")
    width = vision.hidden_size if newer else vision.embed_dim
    out = vision.out_hidden_size if newer else vision.hidden_size
    mlp = vision.intermediate_size if newer else int(width * vision.mlp_ratio)
    merge, patch = vision.spatial_merge_size**2, vision.patch_size**2
    merged = width * merge
    return Tower(
        Stack(hidden=width, layers=vision.depth, heads=vision.num_heads, mlp=mlp, gated=newer),
        patch_weights=vision.in_channels * vision.temporal_patch_size * patch * width,
        projector=merged**2 + merged * out,
        merge=merge,
        window=_window(vision) if newer else None,
        whole=tuple(vision.fullatt_block_indexes) if newer else (),
    )


def _window(vision: Any) -> int:
    """Patches of one window: as many merged ones as the window's side holds, rounded down."""
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    return (side * vision.spatial_merge_size) ** 2


def _without_memory(config: Any) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        name = getattr(config, "model_type", type(config).__name__)
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrunekitError(f"no shape of '{name}': {line}") from None


def _decoder(family: Family, config: Any) -> Stack:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None)
    nope, rope = (getattr(config, f"qk_{part}_head_dim", None) for part in ("nope", "rope"))
    latent = nope is not None and rope is not None  # keys of two parts, values of a width of their own
    return Stack(
        hidden=config.hidden_size,
        layers=family.depth,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=(nope + rope) if latent else width or config.hidden_size // heads,
        mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        gated=not _plain_mlp(family),
        value_dim=getattr(config, "v_head_dim", None) if latent else None,
        weights=tuple(_layer_weights(layer, config) for layer in family.layers),
        attends=tuple(family.attends(layer) for layer in range(family.depth)),
    )


def _plain_mlp(family: Family) -> bool:
    """Whether the MLP has two matrices, an expanding and a contracting one (OPT, Phi-2)."""
    names = " ".join(name for name, _ in family.layers[0].named_modules())
    return bool(re.search(r"\bfc1\b", names)) and "gate" not in names


def _layer_weights(layer: nn.Module, config: Any) -> int:
    """Weights that one token meets in a decoder layer; of stacked experts those that are chosen."""
    chosen = next((getattr(config, name) for name in CHOSEN if getattr(config, name, None)), 1)
    linear = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    stacked = [p for p in layer.parameters() if p.ndim == 3 and not isinstance(p, nn.parameter.UninitializedParameter)]
    return linear + sum(p.shape[1] * p.shape[2] * min(chosen, p.shape[0]) for p in stacked)
