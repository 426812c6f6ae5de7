"""Accuracies and bootstrap intervals, resampled over images: questions about one image are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from prunekit.data.example import Example

RESAMPLES = 2000
LEVEL = 0.95
WEIGHTS = 1_000_000
"""Weights of resampled images that are held at a time."""


class Asked(Protocol):
    """What accuracies and intervals read of an example."""

    @property
    def image_id(self) -> str: ...
    @property
    def task(self) -> str: ...


def is_correct(example: Example, prediction: str) -> bool:
    """Exact match with an accepted answer, after stripping and lower-casing."""
    return prediction.strip().lower() in {answer.strip().lower() for answer in example.answers}


def accuracies(examples: Sequence[Asked], values: Sequence[float]) -> dict[str, float]:
    """Mean of ``values`` (one an example) per task, and their mean over tasks under "mean"."""
    tasks = sorted({e.task for e in examples})
    per_task = {
        task: float(np.mean([v for e, v in zip(examples, values, strict=True) if e.task == task])) for task in tasks
    }
    return {"mean": float(np.mean(list(per_task.values()))), **per_task}


def intervals(examples: Sequence[Asked], values: Sequence[float], seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile bootstrap interval of each entry of ``accuracies``.

    ``values`` may be differences of two runs on the same examples: the interval is then that of the paired difference.
    """
    tasks = sorted({e.task for e in examples})
    images = {image: i for i, image in enumerate(dict.fromkeys(e.image_id for e in examples))}
    sums, counts = np.zeros((len(images), len(tasks))), np.zeros((len(images), len(tasks)))
    for example, value in zip(examples, values, strict=True):
        at = images[example.image_id], tasks.index(example.task)
        sums[at] += value
        counts[at] += 1
    per_task = _resampled(sums, counts, seed)
    tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    columns = {"mean": np.nanmean(per_task, axis=1), **{t: per_task[:, i] for i, t in enumerate(tasks)}}
    return {name: [float(x) for x in np.nanpercentile(column, tails)] for name, column in columns.items()}


def _resampled(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Means [RESAMPLES, tasks] of resampled images, NaN where a task was not drawn; from sums and counts of each image
    [images, tasks]. Some resamples at a time: together their weights would take 3 GB for 200,000 images."""
    rng, size = np.random.default_rng(seed), len(sums)
    shares, at_once = np.full(size, 1 / size), max(1, WEIGHTS // size)
    per_task = np.full((RESAMPLES, sums.shape[1]), np.nan)
    for start in range(0, RESAMPLES, at_once):
        weights = rng.multinomial(size, shares, size=min(at_once, RESAMPLES - start)).astype(float)
        drawn = weights @ counts
        np.divide(weights @ sums, drawn, out=per_task[start : start + at_once], where=drawn > 0)
    return per_task
