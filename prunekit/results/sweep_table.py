"""The table of a sweep over rows: what it says, as plain data and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunekit.records.runs import Run
from prunekit.results.columns import (
    Column,
    Estimate,
    Line,
    Value,
    Words,
    against,
    by_task,
    columns,
    table,
    task_columns,
)
from prunekit.results.difficulty import GROUPS
from prunekit.results.markdown import markdown_table
from prunekit.results.numbers import NONE, ratio, with_interval
from prunekit.results.seeds import COSTS
from prunekit.results.settings import USUAL, Claim, TableSettings


@dataclass
class Cell:
    """One row at one setting, over its seeds.

    Attributes:
        section: what varies beside the seed ("keep_ratio 0.5"), empty if nothing does.
        runs: the finished ones.
        error: why there is none.
        estimates: accuracy and paired differences, by column.
        numbers: costs and the like, by column; None where unknown.
        time_with_vision: whether the measured time has the vision encoder in it.
    """

    row: str
    section: str
    label: str
    runs: list[Run] = field(default_factory=list)
    error: str | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)
    numbers: dict[str, float | None] = field(default_factory=dict)
    time_with_vision: bool = False

    @property
    def name(self) -> str:
        """The row and its section."""
        return f"{self.row}, {self.section}" if self.section else self.row

    def line(self) -> Line:
        """The cell as a line of a table."""
        seeds = f" ({len(self.runs)} seeds)" if len(self.runs) > 1 else ""
        values: dict[str, Value] = {**self.estimates, **self.numbers}
        if self.time_with_vision:
            time = self.numbers["prefill_ratio"]
            values["prefill_ratio"] = Words(f"{ratio(time)} †", time)
        return Line(f"{self.label}{seeds}", values)

    def record(self) -> dict[str, object]:
        """The cell as ``results.json`` has it."""
        named = {"row": self.row, "section": self.section, "label": self.label}
        if not self.runs:
            return {**named, "error": self.error}
        measured = {"seeds": len(self.runs), **self.numbers, "time_with_vision": self.time_with_vision}
        return {**named, "error": None, **_recorded(self.estimates), **measured}


@dataclass(frozen=True)
class Judged:
    """A claim and its verdict; ``difference`` or ``measured`` is what it was judged by."""

    claim: Claim
    verdict: str
    difference: Estimate | None = None
    measured: float | None = None

    def record(self) -> dict[str, object]:
        """The claim as ``results.json`` has it."""
        claim = self.claim
        record: dict[str, object] = {"text": claim.text, "published": str(claim.published), "verdict": self.verdict}
        if self.difference is not None:
            return {**record, "difference": self.difference.mean, "ci": self.difference.interval}
        return record if self.measured is None else {**record, "measured": self.measured}


@dataclass(frozen=True)
class Summary:
    """What a sweep says: all its rows at all their settings, compared on the same examples, and the claims."""

    name: str | None
    model: str
    data: str
    examples: int
    tasks: list[str]
    reference: str | None
    overlap: str | None
    dense: Estimate
    cells: list[Cell]
    claims: list[Judged]

    def record(self) -> dict[str, object]:
        """The summary as ``results.json`` has it."""
        names = ("name", "model", "data", "examples", "tasks", "reference", "overlap")
        return {
            "schema": 1,
            **{name: getattr(self, name) for name in names},
            "dense": _recorded({"accuracy": self.dense}),
            "cells": [cell.record() for cell in self.cells],
            "claims": [claim.record() for claim in self.claims],
        }


def _recorded(estimates: dict[str, Estimate]) -> dict[str, object]:
    record: dict[str, object] = {}
    for name, estimate in estimates.items():
        record |= {name: {**estimate.by_task}, f"{name}_ci": estimate.interval}
    return record


def render(summary: Summary, settings: TableSettings) -> str:
    """Accuracy and cost of all rows, then accuracy by task, a pair of tables for each section; then the claims."""
    lines = [_head(summary, settings)]
    sections = list(dict.fromkeys(cell.section for cell in summary.cells))
    if settings.compact:
        lines += ["", _matrix(summary.cells, sections)]
    for section in () if settings.compact else sections:
        ran = [cell for cell in summary.cells if cell.section == section and cell.runs]
        if settings.order == "accuracy":
            ran.sort(key=lambda cell: (-cell.estimates["accuracy"].mean, cell.row))
        measured = {key for cell in ran for key in {**cell.estimates, **cell.numbers}}
        shown = {key: column for key, column in _columns(summary, settings).items() if key in measured}
        lines += ["", f"### {_title(section).capitalize()}"] if section else []
        lines += [line for cell in ran if shown.keys() & {*GROUPS} and (line := _difficulty(cell))]
        lines += ["", _markdown([cell.line() for cell in ran], shown, "method" if settings.columns == USUAL else "")]
        if settings.tasks:
            each = {"dense": summary.dense, **{cell.label: cell.estimates["accuracy"] for cell in ran}}
            labelled = [
                Line(n, by_task(e.by_task, e.intervals if settings.task_intervals else {})) for n, e in each.items()
            ]
            lines += ["", _markdown(labelled, task_columns(summary.tasks), "accuracy by task")]
    failed = [cell for cell in summary.cells if not cell.runs]
    lines += ["", *(f"- no result for `{cell.name}`: {cell.error}" for cell in failed)] if failed else []
    lines += ["", _claims(summary.claims)] if summary.claims else []
    return "\n".join(lines).rstrip() + "\n"


def _difficulty(cell: Cell) -> str:
    """How many questions a downsampled row gets wrong and right, and what they are worth to the dense model; "" for
    another row."""
    parts = []
    for name, verb in zip(GROUPS, ("wrong (hard", "right (easy"), strict=True):
        if (dense := cell.estimates.get(f"dense_{name}")) is not None:
            accuracy = with_interval(dense.mean, dense.interval)
            parts.append(f"{cell.numbers[f'{name}_examples']} {verb}; dense {accuracy})")
    return f"\n`{cell.label}` gets {' and '.join(parts)}." if parts else ""


def _head(summary: Summary, settings: TableSettings) -> str:
    accuracy = with_interval(summary.dense.mean, summary.dense.interval, unit=" %")
    text = (
        f"`{summary.model}` on `{summary.data}`, {summary.examples} questions. Dense: {accuracy}. Accuracies "
        "are means over tasks in percent; brackets are 95 % bootstrap intervals over images"
    )
    if settings.compact:
        text += ". After the stroke: FLOPs of the LLM's prefill over dense, by the gated-MLP formula."
    else:
        text += "; changes are paired on the same questions."
        if "costs" in settings.columns:
            text += (
                " Costs are pruned over dense: FLOPs of the LLM's prefill by the gated-MLP formula, the same with the "
                "vision encoder, stored keys, measured prefill time (†: with the vision encoder). Methods cut at "
                "layers of their own: read accuracies beside FLOPs."
            )
    return f"{text} {settings.note}" if settings.note else text


def _title(section: str) -> str:
    """A section in words: "keep 0.5"."""
    return section.replace("keep_ratio", "keep").replace("_", " ")


def _columns(summary: Summary, settings: TableSettings) -> dict[str, Column]:
    """The columns that the settings name, by what they show of a cell."""
    named = {
        "costs": columns(COSTS),
        "against": {f"over_{row}": against(words) for row, words in settings.against.items()},
        "over_reference": {"over_reference": against(str(summary.reference))},
        "overlap": {"overlap": Column(f"IoU with {summary.overlap}", 2, 1)},
        "minutes": columns(["training_seconds"]),
    }
    shown: dict[str, Column] = {}
    for name in settings.columns:
        shown |= named[name] if name in named else columns([name])
    return shown


def _markdown(lines: Sequence[Line], shown: dict[str, Column], first: str) -> str:
    headings, rows = table(lines, shown, first)
    return markdown_table(headings, [[cell.text for cell in row] for row in rows])


def _matrix(cells: Sequence[Cell], sections: Sequence[str]) -> str:
    """Rows × sections: accuracy with its interval, and FLOPs over dense after the stroke."""
    by_name = {(cell.label, cell.section): cell for cell in cells if cell.runs}

    def text(cell: Cell | None) -> str:
        if cell is None:
            return NONE
        accuracy = cell.estimates["accuracy"]
        return f"{with_interval(accuracy.mean, accuracy.interval)} / {ratio(cell.numbers['flops_ratio'])}"

    labels = dict.fromkeys(cell.label for cell in cells)
    rows = [[label, *(text(by_name.get((label, section))) for section in sections)] for label in labels]
    return markdown_table(["accuracy / FLOPs", *map(_title, sections)], rows)


def _claims(claims: Sequence[Judged]) -> str:
    def here(judged: Judged) -> str:
        if judged.difference is not None:
            return with_interval(judged.difference.mean, judged.difference.interval, signed=True)
        return ratio(judged.measured)

    rows = [[judged.claim.text, str(judged.claim.published), here(judged), judged.verdict] for judged in claims]
    return markdown_table(["claim", "published", "here", "verdict"], rows, align="lrrl")
