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
        flops_ratio_with_vision: the vision encoder counted on both sides.
        kv_ratio: stored keys of all layers, pruned over dense.
    """

    flops_ratio: float
    flops_ratio_with_vision: float
    kv_ratio: float


def prefill_cost(family: Family, tokens_per_layer: torch.Tensor, vision_macs: float) -> PrefillCost:
    """Cost of prefills whose layers processed ``tokens_per_layer`` [layers, samples] tokens; layer 0 sees them all.

    Args:
        vision_macs: MACs of the vision encoder for all the samples together.
    """
    config = family.text_config
    dense_tokens = tokens_per_layer[:1].expand_as(tokens_per_layer)
    dense, pruned = (
        float(layer_macs(tokens, config.hidden_size, config.intermediate_size).sum())
        for tokens in (dense_tokens, tokens_per_layer)
    )
    return PrefillCost(
        flops_ratio=pruned / dense,
        flops_ratio_with_vision=(pruned + vision_macs) / (dense + vision_macs),
        kv_ratio=float(tokens_per_layer.sum()) / float(dense_tokens.sum()),
    )


def vision_macs(family: Family, inputs: dict[str, Any]) -> float:
    """MACs of the vision encoder, patch embedding and projector for the pixels of a batch of model inputs.

    Encoder layers by the ``fastv`` formula (their MLPs have two matrices).
    """
    config, grids = family.config.vision_config, inputs.get("image_grid_thw")  # type: ignore[union-attr]
    text_width = family.text_config.hidden_size
    if grids is not None:  # Qwen2-VL: patches of any grid, merged before the decoder
        width, depth, mlp = config.embed_dim, config.depth, int(config.embed_dim * config.mlp_ratio)
        patches = grids.prod(-1)
        embed = 3 * config.temporal_patch_size * config.patch_size**2 * width
        merged = width * config.spatial_merge_size**2
        project = (merged * merged + merged * text_width) / config.spatial_merge_size**2
    else:  # a ViT over tiles of one size
        width, depth, mlp = config.hidden_size, config.num_hidden_layers, config.intermediate_size
        tiles = inputs["pixel_values"].shape[:-3].numel()
        patches = torch.full((tiles,), (config.image_size // config.patch_size) ** 2)
        embed = 3 * config.patch_size**2 * width
        project = width * text_width + text_width**2
    layers = depth * layer_macs(patches, width, mlp, "fastv").sum()
    return float(layers + patches.sum() * (embed + project))
