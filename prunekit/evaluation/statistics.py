"""Accuracies and bootstrap intervals, resampled over images: questions about one image are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.data.example import Example

RESAMPLES = 2000
LEVEL = 0.95


def is_correct(example: Example, prediction: str) -> bool:
    """Exact match with an accepted answer, after stripping and lower-casing."""
    return prediction.strip().lower() in {answer.strip().lower() for answer in example.answers}


def accuracies(examples: Sequence[Example], values: Sequence[float]) -> dict[str, float]:
    """Mean of ``values`` (one an example) per task, and their mean over tasks under "mean"."""
    tasks = sorted({e.task for e in examples})
    per_task = {
        task: float(np.mean([v for e, v in zip(examples, values, strict=True) if e.task == task])) for task in tasks
    }
    return {"mean": float(np.mean(list(per_task.values()))), **per_task}


def intervals(examples: Sequence[Example], values: Sequence[float], seed: int = 0) -> dict[str, list[float]]:
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
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=RESAMPLES).astype(float)
    drawn = weights @ counts
    per_task = np.divide(weights @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
    tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    columns = {"mean": np.nanmean(per_task, axis=1), **{t: per_task[:, i] for i, t in enumerate(tasks)}}
    return {name: [float(x) for x in np.nanpercentile(column, tails)] for name, column in columns.items()}
