"""Measured prefill time, pruned against dense, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from prunekit.engine.cache import cache_in
from prunekit.pruning.pruner import Pruner
from prunekit.views.layer import Regions

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

ROUNDS = 7


def timed_prefill(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> tuple[float, Cache | None]:
    """Seconds of one prefill, and the cache that it filled."""
    start = time.perf_counter()
    with torch.inference_mode():
        cache = cache_in(model(**inputs, use_cache=True, logits_to_keep=1))
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, cache


def prefill_ratio(
    model: PreTrainedModel,
    pruner: Pruner,
    inputs: Mapping[str, torch.Tensor],
    regions: Regions | None = None,
) -> float:
    """Median over ``ROUNDS`` of pruned time over dense time of one LLM prefill, taken in turn after a warm-up."""
    ratios = []
    for number in range(ROUNDS + 1):
        dense, _ = timed_prefill(model, inputs)
        handle = pruner.apply(model, regions)
        try:
            pruned, _ = timed_prefill(model, inputs)
        finally:
            handle.remove()
        if number:
            ratios.append(pruned / dense)
    return statistics.median(ratios)
