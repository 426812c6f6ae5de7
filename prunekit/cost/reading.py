"""Shapes read off models and configs."""

from __future__ import annotations

import re
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.cost.shapes import ModelShape, Stack
from prunekit.cost.towers import tower_of
from prunekit.errors import PrunekitError
from prunekit.families import Family, make_family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k")
"""Names under which configs say how many experts a token is sent to."""


def shape_of(source: Any) -> ModelShape:
    """The shape of a model, or of the model that a config describes (built without memory for its weights).

    The weights of each decoder layer are counted on its modules, so grouped keys, chosen experts and layers that differ
    from each other come out as they are. Not counted are the recurrences of hybrid decoders beside their projections,
    and the index of sparse attention.

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


def _without_memory(config: PretrainedConfig) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        name = getattr(config, "model_type", type(config).__name__)
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrunekitError(f"no shape of '{name}': {line}") from None


def _decoder(family: Family, config: PretrainedConfig) -> Stack:
    heads, width = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    assert heads is not None and width is not None
    parts = [_number(config, f"qk_{part}_head_dim") for part in ("nope", "rope")]
    latent = all(parts)  # keys of two parts, values of a width of their own
    widths = (getattr(module, "head_dim", None) for module in family.attentions)
    own = [size for size in widths if isinstance(size, int)]
    return Stack(
        hidden=width,
        layers=family.depth,
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads") or heads,
        head_dim=sum(filter(None, parts)) if latent else round(mean(own)) if own else _number(config, "head_dim"),
        mlp=mlp_width(config),
        gated=not _plain_mlp(family),
        value_dim=_number(config, "v_head_dim") if latent else None,
        weights=tuple(_layer_weights(layer, config) for layer in family.layers),
        attends=tuple(family.attends(layer) for layer in range(family.depth)),
    )


def mlp_width(config: PretrainedConfig) -> int:
    """Width of the decoder's MLPs, their mean where layers differ; four times the hidden width if none is given."""
    return _number(config, "intermediate_size") or 4 * config.hidden_size


def _number(config: PretrainedConfig, name: str) -> int | None:
    """A whole number of a config; of one for each layer the mean."""
    try:
        value = getattr(config, name, None)
    except (AttributeError, RuntimeError):  # it differs from layer to layer
        return None
    if isinstance(value, list | tuple):
        return round(mean(value))
    return value if isinstance(value, int) and value > 0 else None


def _plain_mlp(family: Family) -> bool:
    """Whether the MLP has two matrices, an expanding and a contracting one (OPT, Phi-2)."""
    names = " ".join(name for name, _ in family.layers[0].named_modules())
    return bool(re.search(r"\bfc1\b", names)) and "gate" not in names


def _layer_weights(layer: nn.Module, config: PretrainedConfig) -> int:
    """Weights that one token meets in a decoder layer; of stacked experts those that are chosen."""
    chosen = next((count for name in CHOSEN if (count := _number(config, name))), 1)
    modules = [m for m in layer.modules() if not isinstance(m, nn.Embedding) and "Norm" not in type(m).__name__]
    weights = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    stacked = (p.shape[1] * p.shape[2] * min(chosen, p.shape[0]) for p in weights if p.ndim == 3)
    return sum(p.numel() for p in weights if p.ndim == 2) + sum(stacked)
