"""Counts of all cuts of a sample from what an early layer says, on the budget of a schedule that does not adapt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.engine.answers import ask, check_answer
from prunekit.engine.plan import Plan
from prunekit.engine.prefill import Prefill
from prunekit.errors import PrunekitError


def adapted_counts(plan: Plan, state: Prefill) -> Mapping[int, Sequence[int]]:
    """How many visual tokens of each sample stay after the cut before each layer.

    Raises:
        PrunekitError: for shares of another shape, and such that are not finite, below 0, or rise.
    """
    schedule, layers, layout = plan.adaptive, plan.cut_layers, state.layout
    assert schedule is not None
    view = state.evidence.views[plan.cuts[layers[0]].evidence[-1]]
    answer = ask(schedule, "shares", view, lambda: schedule.shares(view, layers, plan.depth))  # type: ignore[arg-type]
    rows = check_answer(schedule, "shares", view, answer, torch.Size((len(layout.counts), len(layers)))).tolist()
    runs = [end - start for start, end in zip(layers, (*layers[1:], plan.depth), strict=True)]
    counts = []
    for shares, visual, length in zip(rows, layout.counts, layout.prompt_lengths, strict=True):
        falling = all(0 <= b <= a < float("inf") for a, b in zip(shares, (*shares[1:], 0.0), strict=True))
        if not falling:
            raise PrunekitError(f"{type(schedule).__name__}.shares must be finite and never rise, not {shares}")
        planned = sum(n * plan.quota(layer, visual, length) for n, layer in zip(runs, layers, strict=True))
        counts.append(scaled(shares, runs, planned, visual) if visual else [0] * len(layers))
    return dict(zip(layers, zip(*counts, strict=True), strict=True))


def scaled(shares: Sequence[float], runs: Sequence[int], total: int, visual: int) -> list[int]:
    """Counts in proportion to ``shares``, at least 1 and at most ``visual``, whose sum over layers, each count standing
    for ``runs`` of them, is nearest to ``total``; by bisection."""

    def counts(factor: float) -> list[int]:
        return [min(visual, max(1, round(factor * share * visual))) for share in shares]

    def spent(factor: float) -> int:
        return sum(n * count for n, count in zip(runs, counts(factor), strict=True))

    low, high = 0.0, 1.0
    while spent(high) < total and high < 1e9:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) >= total else (middle, high)
    return counts(min((low, high), key=lambda factor: abs(spent(factor) - total)))
