"""What a sweep over rows found: accuracies, paired differences and claims, recomputed from the files of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.evaluation.markdown import render
from prunekit.evaluation.statistics import accuracies, intervals, iou
from prunekit.evaluation.table_settings import Settings
from prunekit.files import put_between, write_json, write_whole
from prunekit.records.rows import check_rows
from prunekit.records.sweep import Outcome, outcomes

COSTS = ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")
SEED = "seed"
"""What varies within a row and is averaged over; all else makes sections."""


@dataclass(frozen=True)
class Asked:
    """What the statistics need to know of an example, from a line of predictions.jsonl."""

    id: str
    image_id: str
    task: str


@dataclass
class Found:
    """One row at one setting, over its seeds.

    Attributes:
        section: what varies beside the seed ("keep_ratio 0.5"), empty if nothing does.
        runs: metrics, and the lines of predictions.jsonl by example, of each finished run.
        error: why there is none.
    """

    row: str
    section: str
    runs: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = field(default_factory=list)
    error: str | None = None

    def values(self, examples: Sequence[Any], key: str = "correct") -> np.ndarray:
        """``key`` of each example, a mean over seeds."""
        return np.mean([[float(rows[e.id][key]) for e in examples] for _, rows in self.runs], axis=0)

    def overlap(self, other: Found, examples: Sequence[Any]) -> np.ndarray:
        """Intersection over union of the kept tokens with those of another row's first run, a mean over seeds."""
        against = other.runs[0][1]
        return np.mean(
            [[iou(rows[e.id]["kept"], against[e.id]["kept"]) for e in examples] for _, rows in self.runs], axis=0
        )


def read(sweep: Path) -> list[Found]:
    """All rows of a sweep's folder, each at each of its settings, in the order of the plan."""
    found: dict[tuple[str, str], Found] = {}
    for outcome in outcomes(sweep):
        section = ", ".join(f"{key} {value}" for key, value in outcome.values.items() if key != SEED)
        entry = found.setdefault((outcome.row, section), Found(outcome.row, section))
        if outcome.error is None:
            entry.runs.append(_run(outcome))
        elif entry.error is None:
            entry.error = outcome.error
    return list(found.values())


def _run(outcome: Outcome) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    try:
        metrics = json.loads((outcome.folder / "metrics.json").read_text())
        lines = (outcome.folder / "predictions.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise PrunekitError(f"table: the run in '{outcome.folder}' cannot be read: {error}") from None
    check_rows(rows, metrics, outcome.folder)
    return metrics, {row["id"]: row for row in rows if not row.get("error")}


def summarise(sweep: Path, settings: Settings) -> dict[str, Any]:
    """All rows of a sweep as plain data: accuracies, paired differences with 95 % intervals, costs, claims.

    Compared are the examples that every finished run has answered.

    Raises:
        PrunekitError: if no run is finished, or the runs are of different models or data.
    """
    found = read(sweep)
    done = [entry for entry in found if entry.runs]
    if not done:
        reason = next((entry.error for entry in found if entry.error), "the sweep has no rows")
        raise PrunekitError(f"table: no run in '{sweep}' is finished: {reason}")
    head = {}
    for key in ("model", "data"):
        several = sorted({metrics[key] for entry in done for metrics, _ in entry.runs})
        if len(several) > 1:
            raise PrunekitError(f"table: the runs differ in their {key}: {', '.join(several)}")
        head[key] = several[0]
    examples = common(done)
    dense = done[0].values(examples, "dense_correct")
    by_name = {(entry.row, entry.section): entry for entry in done}
    cells = [_cell(entry, by_name, examples, dense, settings) for entry in found]
    tasks = sorted({e.task for e in examples})
    known = {entry.row: entry.values(examples) for entry in done if not entry.section} | {"dense": dense}
    costs = {cell["row"]: cell for cell in cells if not cell["section"] and cell["error"] is None}
    names = {entry.row for entry in found} | {"dense"} if settings.rows is None else None
    return {
        "schema": 1,
        "name": settings.name,
        **head,
        "examples": len(examples),
        "tasks": tasks,
        "reference": settings.reference,
        "overlap": settings.overlap,
        "dense": _with_interval(examples, dense, "accuracy"),
        "cells": cells,
        "claims": [judge(claim, known, costs, examples, names) for claim in settings.claims],
    }


def common(found: Sequence[Found]) -> list[Any]:
    """The examples that all finished runs have answered, by id: so that the bootstrap draws the same images whatever
    order they were answered in."""
    runs = [rows for entry in found for _, rows in entry.runs]
    ids = sorted(name for name in runs[0] if all(name in rows for rows in runs))
    if not ids:
        raise PrunekitError("table: the runs have no example in common")
    return [Asked(name, runs[0][name].get("image_id", name), runs[0][name]["task"]) for name in ids]


def _cell(
    entry: Found,
    by_name: dict[tuple[str, str], Found],
    examples: Sequence[Any],
    dense: np.ndarray,
    settings: Settings,
) -> dict[str, Any]:
    cell: dict[str, Any] = {"row": entry.row, "section": entry.section, "error": None if entry.runs else entry.error}
    if not entry.runs:
        return cell
    right = entry.values(examples)
    numbers = {"accuracy": right, "change": right - dense}
    if (reference := by_name.get((settings.reference or "", entry.section))) is not None:
        numbers["over_reference"] = right - reference.values(examples)
    if (other := by_name.get((settings.overlap or "", entry.section))) is not None:
        numbers["overlap"] = entry.overlap(other, examples)
    for name, values in numbers.items():
        cell |= _with_interval(examples, values, name)
    metrics = [metrics for metrics, _ in entry.runs]
    cell["kept"] = float(np.mean([len(rows[e.id]["kept"]) for _, rows in entry.runs for e in examples]))
    cell["seeds"] = len(entry.runs)
    for cost in COSTS:
        values = [m[cost] for m in metrics]
        cell[cost] = None if None in values else float(np.mean(values))
    cell["time_with_vision"] = metrics[0]["prefill_ratio_includes_vision"]
    return cell


def judge(
    claim: dict[str, Any],
    known: dict[str, np.ndarray],
    cells: dict[str, dict[str, Any]],
    examples: Sequence[Any],
    names: set[str] | None,
) -> dict[str, Any]:
    """Whether a claim holds here. It says that the accuracy of the row ``better`` is more than ``margin`` (0 if not
    given) above that of ``worse``, "dense" being a row: it holds if the paired interval lies wholly above the margin,
    does not if it lies wholly below, and is open in between. Or it gives the ``cost`` of a ``row`` as ``value``, to two
    decimals. ``names`` are the rows that it may name, None where some were left out."""
    rows = [claim[key] for key in ("better", "worse", "row") if key in claim]
    for row in rows:
        if names is not None and row not in names:
            raise UnknownNameError("row in table.claims:", row, names)
    judged = {"text": claim["text"], "published": str(claim.get("published", "–")), "verdict": "not measured"}
    if "row" in claim:
        if claim["row"] in cells:
            measured = cells[claim["row"]][claim["cost"]]
            same = measured is not None and round(measured, 2) == round(claim["value"], 2)
            judged |= {"measured": measured, "verdict": "holds" if same else "does not hold"}
        return judged
    if all(row in known for row in rows):
        over = known[claim["better"]] - known[claim["worse"]]
        found = _with_interval(examples, over, "difference")
        low, high = found["difference_ci"]
        margin = claim.get("margin", 0.0)
        verdict = "holds" if low > margin else "does not hold" if high < margin else "open"
        judged |= {"difference": found["difference"]["mean"], "ci": [low, high], "verdict": verdict}
    return judged


def _with_interval(examples: Sequence[Any], values: np.ndarray, name: str) -> dict[str, Any]:
    """Means of ``values`` (one an example) by task under ``name``, and the interval of their mean."""
    numbers = values.tolist()
    return {name: accuracies(examples, numbers), f"{name}_ci": intervals(examples, numbers)["mean"]}


def write_results(sweep: Path, settings: Settings) -> list[str]:
    """``results.json`` and ``results.md`` in the sweep's folder, the same table between the markers of ``file``; the
    files' names. The table goes to standard output."""
    results = summarise(sweep, settings)
    text = render(results, settings)
    write_json(sweep / "results.json", results)
    write_whole(sweep / "results.md", text)
    print(text)
    written = [str(sweep / "results.json"), str(sweep / "results.md")]
    if settings.file is not None:
        put_between(Path(settings.file), text, str(settings.name))
        written.append(settings.file)
    return written
