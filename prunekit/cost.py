"""What a prefill costs, by named formulas: multiply-accumulates (MACs) of transformer layers, and KV-cache entries.

Formulas per layer, n tokens, width d, MLP width m (FastV, ECCV 2024, section 3.4, and its gated form):
``fastv`` 4nd² + 2n²d + 2ndm; ``gated`` 4nd² + 2n²d + 3ndm (Llama-like MLPs with three matrices).
They count all n tokens, a full n² attention and keys for every head, but neither embeddings nor the LM head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunekit.errors import check_choice
from prunekit.families import Family

MLP_MATRICES = {"fastv": 2, "gated": 3}


def layer_macs(tokens: torch.Tensor, width: int, mlp_width: int, formula: str = "gated") -> torch.Tensor:
    """MACs of one layer for each entry of ``tokens`` (any shape), float64."""
    check_choice("formula", formula, MLP_MATRICES)
    n = tokens.to(torch.float64)
    return 4 * n * width**2 + 2 * n**2 * width + MLP_MATRICES[formula] * n * width * mlp_width


@dataclass(frozen=True)
class PrefillCost:
    """Pruned against dense, summed over samples.

    Attributes:
        flops_ratio: the LLM's layers alone, ``gated`` formula, all tokens.
        flops_ratio_with_vision: the vision encoder counted on both sides; None if its layout is not known here.
        kv_ratio: stored keys of all layers, pruned over dense.
    """

    flops_ratio: float
    flops_ratio_with_vision: float | None
    kv_ratio: float


def prefill_cost(
    family: Family, tokens_per_layer: torch.Tensor, prompt_tokens: torch.Tensor, vision_macs: float | None
) -> PrefillCost:
    """Cost of prefills of ``prompt_tokens`` [samples], whose layers processed ``tokens_per_layer`` [layers, samples].

    Args:
        vision_macs: MACs of the vision encoder for all the samples together, None if unknown.
    """
    config = family.text_config
    dense_tokens = prompt_tokens.expand_as(tokens_per_layer)
    mlp_width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    dense, pruned = (
        float(layer_macs(tokens, config.hidden_size, mlp_width).sum()) for tokens in (dense_tokens, tokens_per_layer)
    )
    both = None if vision_macs is None else (pruned + vision_macs) / (dense + vision_macs)
    return PrefillCost(
        flops_ratio=pruned / dense,
        flops_ratio_with_vision=both,
        kv_ratio=float(tokens_per_layer.sum()) / float(dense_tokens.sum()),
    )


def vision_macs(family: Family, inputs: Any) -> float | None:
    """MACs of the vision encoder, patch embedding and projector for the pixels of a batch of model inputs.

    Encoder layers by the ``fastv`` formula (their MLPs have two matrices). None for towers that are laid out neither
    like a ViT over tiles of one size nor like Qwen2-VL's over a grid of patches.
    """
    config, grids = getattr(family.config, "vision_config", None), inputs.get("image_grid_thw")
    try:
        if grids is not None:
            return _grid_macs(config, grids, family.text_config.hidden_size)
        return _tile_macs(config, inputs["pixel_values"], family.text_config.hidden_size)
    except (AttributeError, KeyError, TypeError):
        return None


def _tile_macs(config: Any, pixels: torch.Tensor, text_width: int) -> float:
    """A ViT with CLS token over tiles of one size, and a two-layer projector."""
    width, tiles = config.hidden_size, pixels.shape[:-3].numel()
    patches = (config.image_size // config.patch_size) ** 2
    layers = config.num_hidden_layers * layer_macs(torch.tensor(patches + 1), width, config.intermediate_size, "fastv")
    return tiles * (float(layers) + patches * (3 * config.patch_size**2 * width + width * text_width + text_width**2))


def _grid_macs(config: Any, grids: torch.Tensor, text_width: int) -> float:
    """Qwen2-VL: patches of any grid, each image attended whole, merged before the decoder."""
    width = config.embed_dim
    patches = grids.prod(-1)
    embed = 3 * config.temporal_patch_size * config.patch_size**2 * width
    merged = width * config.spatial_merge_size**2
    project = (merged * merged + merged * text_width) / config.spatial_merge_size**2
    layers = config.depth * layer_macs(patches, width, int(width * config.mlp_ratio), "fastv").sum()
    return float(layers + patches.sum() * (embed + project))
