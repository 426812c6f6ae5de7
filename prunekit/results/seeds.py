"""One method at one budget, over its seeds: right answers, costs and kept tokens from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from prunekit.records.runs import Run

COSTS = ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")


def answers(runs: Sequence[Run], ids: Sequence[str], key: str = "correct") -> np.ndarray:
    """``key`` of each example, [seeds, examples]."""
    return np.array([[float(run.rows[i][key]) for i in ids] for run in runs])


def costs(runs: Sequence[Run]) -> dict[str, float | None]:
    """Pruned over dense, means over seeds; None where one is unknown."""
    return {cost: mean(run.metrics.get(cost) for run in runs) for cost in COSTS}


def kept(runs: Sequence[Run], ids: Sequence[str]) -> float:
    """Mean visual tokens after the last cut."""
    return float(np.mean([len(run.rows[i]["kept"]) for run in runs for i in ids]))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, None if a value is unknown."""
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return float(np.mean(known)) if len(known) == len(numbers) else None
