"""What a sweep over rows found: accuracies, paired differences and claims, recomputed from the files of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.files import put_between, write_json, write_whole
from prunekit.loaded import base_name
from prunekit.records.runs import Question, Run, read_run
from prunekit.records.sweep import outcomes
from prunekit.results.seeds import answers, costs, kept, mean
from prunekit.results.settings import Claim, TableSettings
from prunekit.results.statistics import accuracies, intervals, iou
from prunekit.results.sweep_table import render

SEED = "seed"
"""What varies within a row and is averaged over; all else makes sections."""


@dataclass
class Cell:
    """One row at one setting, over its seeds.

    Attributes:
        section: what varies beside the seed ("keep_ratio 0.5"), empty if nothing does.
        runs: the finished ones.
        error: why there is none.
    """

    row: str
    section: str
    label: str
    runs: list[Run] = field(default_factory=list)
    error: str | None = None

    def values(self, questions: Sequence[Question], key: str = "correct") -> np.ndarray:
        """``key`` of each example, a mean over seeds."""
        return answers(self.runs, [q.id for q in questions], key).mean(0)

    def overlap(self, other: Cell, questions: Sequence[Question]) -> np.ndarray:
        """Intersection over union of the kept tokens with those of another row's first run, a mean over seeds."""
        against = other.runs[0].rows
        return np.mean(
            [[iou(run.rows[q.id]["kept"], against[q.id]["kept"]) for q in questions] for run in self.runs], axis=0
        )


def read(sweep: Path) -> list[Cell]:
    """All rows of a sweep's folder, each at each of its settings, in the order of the plan."""
    cells: dict[tuple[str, str], Cell] = {}
    for outcome in outcomes(sweep):
        section = ", ".join(f"{key} {value}" for key, value in outcome.values.items() if key != SEED)
        cell = cells.setdefault((outcome.row, section), Cell(outcome.row, section, outcome.label))
        if outcome.error is None:
            cell.runs.append(read_run(outcome.folder))
        elif cell.error is None:
            cell.error = outcome.error
    return list(cells.values())


def summarise(sweep: Path, settings: TableSettings) -> dict[str, Any]:
    """All rows of a sweep as plain data: accuracies, paired differences with 95 % intervals, costs, claims.

    Compared are the examples that every finished run has answered.

    Raises:
        PrunekitError: if no run is finished, or the runs are of different models or data.
    """
    cells = read(sweep)
    done = [cell for cell in cells if cell.runs]
    if not done:
        reason = next((cell.error for cell in cells if cell.error), "the sweep has no rows")
        raise PrunekitError(f"table: no run in '{sweep}' is finished: {reason}")
    head = {}
    for key in ("model", "data"):
        several = sorted({base_name(str(run.metrics[key])) for cell in done for run in cell.runs})
        if len(several) > 1:
            raise PrunekitError(f"table: the runs differ in their {key}: {', '.join(several)}")
        head[key] = several[0]
    questions = common([run for cell in done for run in cell.runs])
    dense = done[0].values(questions, "dense_correct")
    listed = [_described(cell, done, questions, dense, settings) for cell in cells]
    known = {cell.row: cell.values(questions) for cell in done if not cell.section} | {"dense": dense}
    costs_of = {cell["row"]: cell for cell in listed if not cell["section"] and cell["error"] is None}
    names = None if settings.narrowed else {cell.row for cell in cells} | {"dense"}
    return {
        "schema": 1,
        "name": settings.name,
        **head,
        "examples": len(questions),
        "tasks": sorted({q.task for q in questions}),
        "reference": settings.reference,
        "overlap": settings.overlap,
        "dense": _with_interval(questions, dense, "accuracy"),
        "cells": listed,
        "claims": [judge(claim, known, costs_of, questions, names) for claim in settings.claims],
    }


def common(runs: Sequence[Run]) -> list[Question]:
    """The examples that all runs have answered, by id: so that the bootstrap draws the same images whatever order they
    were answered in."""
    answered = [{i for i, row in run.rows.items() if not row.get("error")} for run in runs]
    ids = sorted(set.intersection(*answered))
    if not ids:
        raise PrunekitError("table: the runs have no example in common")
    return [runs[0].questions[i] for i in ids]


def _described(
    cell: Cell, done: Sequence[Cell], questions: Sequence[Question], dense: np.ndarray, settings: TableSettings
) -> dict[str, Any]:
    """A cell as plain data; of one without a run why there is none."""
    entry: dict[str, Any] = {"row": cell.row, "section": cell.section, "label": cell.label}
    entry["error"] = None if cell.runs else cell.error
    if not cell.runs:
        return entry
    right = cell.values(questions)
    peers = {other.row: other for other in done if other.section == cell.section}
    numbers = {"accuracy": right, "change": right - dense}
    if (reference := peers.get(settings.reference or "")) is not None:
        numbers["over_reference"] = right - reference.values(questions)
    for row in settings.against:
        if row == cell.row:
            break
        if row in peers:
            numbers[f"over_{row}"] = right - peers[row].values(questions)
    if (other := peers.get(settings.overlap or "")) is not None:
        numbers["overlap"] = cell.overlap(other, questions)
    for name, values in numbers.items():
        entry |= _with_interval(questions, values, name)
    metrics = [run.metrics for run in cell.runs]
    entry |= {"kept": kept(cell.runs, [q.id for q in questions]), "seeds": len(cell.runs), **costs(cell.runs)}
    entry["time_with_vision"] = metrics[0].get("prefill_ratio_includes_vision", False)
    entry["own_dense"] = accuracies(questions, cell.values(questions, "dense_correct").tolist())["mean"]
    if all("spread" in m for m in metrics):
        entry |= {key: mean(m["spread"][key] for m in metrics) for key in metrics[0]["spread"]}
    if all(m.get("training_seconds") is not None for m in metrics):
        entry["training_seconds"] = mean(m["training_seconds"] for m in metrics)
    return entry


def judge(
    claim: Claim,
    known: Mapping[str, np.ndarray],
    cells: Mapping[str, dict[str, Any]],
    questions: Sequence[Question],
    names: set[str] | None,
) -> dict[str, Any]:
    """Whether a claim holds here. One about accuracies holds if the paired interval lies wholly above the margin, does
    not if it lies wholly below, and is open in between. ``names`` are the rows that it may name, None where some were
    left out."""
    for row in claim.rows:
        if names is not None and row not in names:
            raise UnknownNameError("row in sweep.table.claims:", row, names)
    judged = {"text": claim.text, "published": str(claim.published), "verdict": "not measured"}
    if claim.row is not None and claim.row in cells:
        measured = cells[claim.row][str(claim.cost)]
        same = measured is not None and claim.value is not None and round(measured, 2) == round(claim.value, 2)
        return judged | {"measured": measured, "verdict": "holds" if same else "does not hold"}
    better, worse = known.get(claim.better or ""), known.get(claim.worse or "")
    if better is not None and worse is not None:
        over = _with_interval(questions, better - worse, "difference")
        low, high = over["difference_ci"]
        verdict = "holds" if low > claim.margin else "does not hold" if high < claim.margin else "open"
        return judged | {"difference": over["difference"]["mean"], "ci": [low, high], "verdict": verdict}
    return judged


def _with_interval(questions: Sequence[Question], values: np.ndarray, name: str) -> dict[str, Any]:
    """Means of ``values`` (one an example) by task under ``name``, and the interval of their mean."""
    numbers = values.tolist()
    return {name: accuracies(questions, numbers), f"{name}_ci": intervals(questions, numbers)["mean"]}


def write_results(sweep: Path, settings: TableSettings) -> list[str]:
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
