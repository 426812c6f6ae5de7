"""One method at one budget, over its seeds: right answers, costs and kept tokens from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np

from prunekit.records.runs import Run

COSTS: Final = ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")


Side = Literal["correct", "dense_correct"]


def answers(runs: Sequence[Run], ids: Sequence[str], key: Side = "correct") -> np.ndarray:
    """``key`` of each example, [seeds, examples]."""
    return np.array([[float(run.rows[i][key]) for i in ids] for run in runs])


def costs(runs: Sequence[Run]) -> dict[str, float | None]:
    """Pruned over dense, means over seeds; None where one is unknown."""
    return {
        "flops_ratio": mean(run.metrics["flops_ratio"] for run in runs),
        "flops_ratio_with_vision": mean(run.metrics.get("flops_ratio_with_vision") for run in runs),
        "kv_ratio": mean(run.metrics["kv_ratio"] for run in runs),
        "prefill_ratio": mean(run.metrics.get("prefill_ratio") for run in runs),
    }


def kept(runs: Sequence[Run], ids: Sequence[str]) -> float:
    """Mean visual tokens after the last cut."""
    return float(np.mean([len(run.rows[i]["kept"]) for run in runs for i in ids]))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, None if a value is unknown."""
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return float(np.mean(known)) if len(known) == len(numbers) else None
