"""How a pruner's scores are spread: attention mass on what stays, mass on the image at all, and sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from prunekit.data.example import Example
from prunekit.evaluation.batches import Batcher
from prunekit.pruning.pruner import Pruner
from prunekit.records.folder import add_metrics
from prunekit.records.metrics import Metrics
from prunekit.train.penalties import PENALTIES


def record_spread(
    folder: Path, batcher: Batcher, examples: Sequence[Example], pruner: Pruner, *, count: int, batch_size: int
) -> Metrics:
    """Measure ``score_spread`` on the first ``count`` examples of a finished run; its metrics, with that."""
    spread = score_spread(batcher, examples[:count], pruner, batch_size)
    return add_metrics(folder, spread=spread)


def score_spread(batcher: Batcher, examples: Sequence[Example], pruner: Pruner, batch_size: int) -> dict[str, float]:
    """Means over examples and cuts of the scores that decide each cut, taken over the tokens that stood before it.

    ``on_kept`` is the share of the scores' sum on what stays, ``l1`` that sum (for attention: how much of the
    instruction's attention the image gets), ``entropy`` and ``hoyer`` the penalties of the same names.
    """
    spreads: dict[str, list[float]] = {"on_kept": [], **{name: [] for name in PENALTIES}}
    for batch in batcher.batches(examples, batch_size):
        inputs = batcher.inputs(batch, pruner)
        with torch.inference_mode(), pruner(batcher.loaded.model) as trace:
            batcher.loaded.model(**inputs, use_cache=False)
        for cut in trace.cuts:
            alive = ~cut.scores.isnan()
            mass = torch.where(alive, cut.scores, 0.0).abs()
            spreads["on_kept"] += ((mass * cut.kept).sum(1) / mass.sum(1).clamp(min=1e-12)).tolist()
            for name, function in PENALTIES.items():
                spreads[name] += function(cut.scores, alive).tolist()
    return {name: sum(values) / len(values) for name, values in spreads.items()}
