"""Taking the time: contenders in turn, round after round, so that what drifts drifts for all of them."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunekit.bench.memory import AllocationMeter, kv_bytes
from prunekit.bench.record import Ratio, Spread
from prunekit.bench.segments import cache_name
from prunekit.bench.workload import Workload
from prunekit.engine.cache import cache_in

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Setting = Callable[[], AbstractContextManager[Any]]
"""Puts a contender on the model for as long as its block lasts."""


@dataclass
class Timings:
    """Seconds of each round.

    Attributes:
        prefill: from the prompt's features to the logits of its last token.
        token: one decode step, the mean over the steps of a round.
        memory: bytes of activations that were alive at the peak of a prefill, its cache included.
        device_peak: the CUDA allocator's peak in a prefill, weights included; None elsewhere.
        kv_bytes: of the cache after the prefill.
    """

    prefill: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    memory: int = 0
    device_peak: int | None = None
    kv_bytes: int = 0


@torch.inference_mode()
def take_turns(
    model: PreTrainedModel, work: Workload, contenders: dict[str, Setting], rounds: int, new_tokens: int
) -> tuple[dict[str, Timings], list[float]]:
    """Time every contender once a round, after a round to warm up; each round draws its order anew, since what ran
    before leaves its mark on the allocator and the caches.

    Returns:
        The contenders' timings by name, and the vision encoder's seconds of each round (empty if it cannot be called).
    """
    found = {name: Timings() for name in contenders}
    vision: list[float] = []
    order = random.Random(0)
    for number in range(rounds + 1):
        if work.vision is not None:
            vision.append(_seconds(work.vision, model)[0])
        for name in order.sample(list(contenders), len(contenders)):
            with contenders[name]():
                prefill, output = _seconds(lambda: _prefill(model, work), model)
                cache = cache_in(output)
                found[name].kv_bytes = kv_bytes(cache)
                token = _decode(model, work, cache, new_tokens)
            if number:
                found[name].prefill.append(prefill)
                found[name].token.append(token)
            del output, cache
    for name, setting in contenders.items():
        with setting():
            _memory(model, work, found[name])
    return found, vision[1:]


def _prefill(model: PreTrainedModel, work: Workload) -> Any:
    return model(**work.inputs(), use_cache=True, logits_to_keep=1)


def _decode(model: PreTrainedModel, work: Workload, cache: Cache, steps: int) -> float:
    """Mean seconds of ``steps`` decode steps of one token a sample."""
    if not steps:
        return 0.0
    token = torch.full((work.batch, 1), 7, device=model.device)

    def run() -> None:
        for _ in range(steps):
            model(input_ids=token, use_cache=True, **{cache_name(): cache})

    return _seconds(run, model)[0] / steps


def _memory(model: PreTrainedModel, work: Workload, timings: Timings) -> None:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        _prefill(model, work)
        timings.device_peak = torch.cuda.max_memory_allocated(model.device)
    with AllocationMeter() as meter:
        _prefill(model, work)
    timings.memory = meter.peak


def _seconds(call: Callable[[], Any], model: PreTrainedModel) -> tuple[float, Any]:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    found = call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start, found


def spread(values: list[float]) -> Spread:
    """Median and quartiles of one value or more."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def ratios(values: list[float], of: list[float]) -> Ratio | None:
    """Median and quartiles of the ratios round by round, and the median's interval; None where all are of nothing."""
    by_round = [a / b for a, b in zip(values, of, strict=True) if b]
    if not by_round:
        return None
    low, high = median_interval(by_round)
    return {**spread(by_round), "from": low, "to": high}


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of like ranks from both ends between which the median lies with probability ``level`` or more,
    whatever the distribution (binomial tails); the whole range where there are too few values for that."""
    ordered, count = sorted(values), len(values)
    tail, rank = 1 / 2**count, 0  # the chance that at most ``rank`` values lie below the median
    while 2 * (tail + math.comb(count, rank + 1) / 2**count) <= 1 - level:
        rank += 1
        tail += math.comb(count, rank) / 2**count
    return ordered[rank], ordered[-1 - rank]
