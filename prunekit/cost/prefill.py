"""What an evaluation counts: prefills that really happened, from the tokens that each layer processed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prunekit.cost.estimate import tower_macs
from prunekit.cost.formulas import layer_macs
from prunekit.cost.reading import mlp_width
from prunekit.cost.towers import tower_of
from prunekit.families import Family


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
    family: Family,
    tokens_per_layer: torch.Tensor,
    prompt_tokens: torch.Tensor,
    vision_macs: float | None,
    times: torch.Tensor | None = None,
) -> PrefillCost:
    """Cost of prefills of ``prompt_tokens`` [samples], whose layers processed ``tokens_per_layer`` [layers, samples].

    Args:
        vision_macs: MACs of the vision encoder for all the samples together, None if unknown.
        times: how often each sample counts [samples]; once by default.
    """
    config = family.text_config
    times = torch.ones_like(prompt_tokens) if times is None else times
    dense_tokens = prompt_tokens.expand_as(tokens_per_layer)
    dense, pruned = (
        float((layer_macs(tokens, config.hidden_size, mlp_width(config)) * times).sum())
        for tokens in (dense_tokens, tokens_per_layer)
    )
    both = None if vision_macs is None else (pruned + vision_macs) / (dense + vision_macs)
    return PrefillCost(
        flops_ratio=pruned / dense,
        flops_ratio_with_vision=both,
        kv_ratio=float((tokens_per_layer * times).sum()) / float((dense_tokens * times).sum()),
    )


def vision_macs(family: Family, inputs: Mapping[str, torch.Tensor]) -> float | None:
    """MACs of the vision encoder, patch embedding and projector for the pixels of a batch of model inputs: all images,
    tiles, and frames of videos.

    By the ``counter`` convention: nothing in an encoder is causal, and its MLPs are as they are. None for towers whose
    layout is not known here.
    """
    tower = tower_of(family.config, family.text_config.hidden_size)
    if tower is None:
        return None
    patches: list[int] = []
    projected = 0
    for name in ("image_grid_thw", "video_grid_thw"):
        grids = inputs.get(name)  # the frames of a grid are attended one by one
        patches += [] if grids is None else [int(h * w) for t, h, w in grids.tolist() for _ in range(t)]
    if patches:
        projected = sum(patches) // tower.merge
    elif tower.patches is not None:
        for name in ("pixel_values", "pixel_values_images", "pixel_values_videos"):
            count = inputs[name].shape[:-3].numel() if name in inputs else 0
            video = name.endswith("videos") and tower.frame_vectors is not None
            patches += [tower.patches] * count
            projected += count * (tower.frame_vectors if video else tower.patches // tower.merge)  # type: ignore[operator]
    return tower_macs(tower, patches, "counter") + projected * tower.projector if patches else None
