"""A small evaluation, and what its folder says."""

from __future__ import annotations

import json

import prunekit
from prunekit.data import load
from prunekit.evaluation.run import evaluate

COUNT = 36


def run(loaded, folder, examples=None, pruner=None, **options):
    examples = load("test", COUNT) if examples is None else examples
    options = {"batch_size": 4, "max_new_tokens": 2, **options}
    return evaluate(loaded, examples, pruner or prunekit.Pruner(), folder, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def measured(folder):
    """metrics.json but for what a clock says."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key != "prefill_ratio"}
