"""The benchmark's numbers over all rows, added to metrics.json of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit.metrics import corpus_metrics


def add_corpus_metrics(metrics: dict[str, Any], folder: Path, name: str) -> None:
    """Put ``metric``, its name, and where it has any its ``extra`` and ``dense_extra`` into ``metrics`` and into the
    folder's metrics.json, from the rows in predictions.jsonl."""
    from prunekit.evaluation.run import write_json

    with (folder / "predictions.jsonl").open() as lines:
        metrics |= {"metric": name, **corpus_metrics(name, map(json.loads, lines))}
    write_json(folder / "metrics.json", metrics)
