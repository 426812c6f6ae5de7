"""Accuracies and their uncertainty. Resampled are images, with all their questions: those are not independent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 2**21
"""Numbers of resampling weights held at a time."""

Interval = list[float] | None
"""The two ends; None where questions about one image alone say nothing of other images."""


class Asked(Protocol):
    """What is resampled together (``image_id``) and averaged apart (``task``)."""

    @property
    def image_id(self) -> str: ...
    @property
    def task(self) -> str: ...


def iou(one: Collection[int], two: Collection[int]) -> float:
    """Intersection over union of two sets of token indices; 1 for two empty ones."""
    a, b = set(one), set(two)
    return len(a & b) / len(a | b) if a | b else 1.0


def accuracies(examples: Sequence[Asked], values: Sequence[float]) -> dict[str, float]:
    """Mean of ``values`` (one an example) per task, and their mean over tasks under "mean"."""
    tasks = task_names(examples)
    per_task = {
        task: float(np.mean([v for e, v in zip(examples, values, strict=True) if e.task == task])) for task in tasks
    }
    return {"mean": float(np.mean(list(per_task.values()))), **per_task}


def intervals(examples: Sequence[Asked], values: Sequence[float], seed: int = 0) -> dict[str, Interval]:
    """95 % percentile bootstrap interval of each entry of ``accuracies``.

    ``values`` may be differences of two runs on the same examples: the interval is then that of the paired difference.
    """
    draws = bootstrap(examples, np.asarray(values, dtype=float)[None], seed)[:, 0]
    return {name: interval(draws[:, i]) for i, name in enumerate(("mean", *task_names(examples)))}


def task_names(examples: Sequence[Asked]) -> list[str]:
    """The tasks among the examples, in alphabetical order."""
    return sorted({e.task for e in examples})


def bootstrap(examples: Sequence[Asked], values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Accuracies of several runs on the same examples under a bootstrap over images.

    Args:
        values: [runs, examples].

    Returns:
        [resamples, runs, 1 + tasks]: the mean over tasks, then each task of ``task_names``; NaN where a draw has no
        example of a task, and in all draws where all its examples are of one image; the mean is NaN where that is so of
        all tasks, else a task of one image adds nothing to its spread. One draw is of the same images for all runs, so
        differences of runs are paired.
    """
    tasks = {task: i for i, task in enumerate(task_names(examples))}
    images = {image: i for i, image in enumerate(dict.fromkeys(e.image_id for e in examples))}
    sums, counts = np.zeros((len(images), len(values), len(tasks))), np.zeros((len(images), len(tasks)))
    for number, example in enumerate(examples):
        image, task = images[example.image_id], tasks[example.task]
        sums[image, :, task] += values[:, number]
        counts[image, task] += 1
    rng, shares = np.random.default_rng(seed), []
    share, size = np.full(len(images), 1 / len(images)), max(1, BLOCK // len(images))
    for start in range(0, resamples, size):  # blocks of one stream: the draws do not depend on their size
        weights = rng.multinomial(len(images), share, size=min(size, resamples - start)).astype(float)
        drawn = (weights @ counts)[:, None]
        total = np.tensordot(weights, sums, 1)
        shares.append(np.divide(total, drawn, out=np.full_like(total, np.nan), where=drawn > 0))
    per_task = np.concatenate(shares)
    drawn = np.concatenate([np.nanmean(per_task, axis=2, keepdims=True), per_task], axis=2)
    alone = (counts > 0).sum(0) < 2
    drawn[..., [alone.all(), *alone]] = np.nan
    return drawn


def over_seeds(draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draws of a method that draws at random from those of its seeds, [resamples, seeds, …] → [resamples, …].

    Each draw takes as many seeds as there are, with replacement: its spread is that of images and of seeds.
    """
    count = draws.shape[1]
    weights = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=len(draws))
    return np.einsum("bs,bs...->b...", weights / count, draws)


def seed_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean over seeds alone, by Student's t; None for one seed, which says nothing of others."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    middle = float(np.mean(values))
    return [middle - half, middle + half]


def interval(draws: np.ndarray) -> Interval:
    """The 95 % percentile interval of bootstrap draws [resamples]; None where all of them are NaN."""
    if np.isnan(draws).all():
        return None
    tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    return [float(x) for x in np.nanpercentile(draws, tails)]


def p_value(draws: np.ndarray) -> float:
    """Two-sided p-value of "the difference is zero" from bootstrap draws [resamples] of it: twice the smaller tail
    beyond zero, zero itself in both, one draw added to each (Davison and Hinkley 1997, 4.2.3: no p-value is 0)."""
    draws = draws[~np.isnan(draws)]
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of a family of p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return adjusted.tolist()
