"""The columns of the tables, of a report's and of a sweep's: what each is called, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prunekit.results.numbers import NONE, with_interval


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or the difference of two on the same examples.

    Attributes:
        by_task: one of each task, and their mean under "mean".
        interval: the 95 % bootstrap interval of the mean; None where the questions are of one image.
        intervals: those of the tasks, and of the mean, where they were worked out.
    """

    by_task: Mapping[str, float]
    interval: Sequence[float] | None
    intervals: Mapping[str, Sequence[float] | None] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return self.by_task["mean"]


class Words(NamedTuple):
    """A text of its own in place of a number; ``sort`` is the number that the line is sorted by."""

    text: str
    sort: float | None = None


Value = Estimate | Words | float | None


class Cell(NamedTuple):
    """A cell of a table: what it shows, what it is sorted by, and whether it is the best of its column."""

    text: str
    sort: float | str | None
    best: bool


@dataclass(frozen=True)
class Line:
    """A line of a table: its values by the keys of columns, and the keys in which it is the best."""

    name: str
    values: Mapping[str, Value]
    best: Collection[str] = ()


@dataclass(frozen=True)
class Column:
    """A heading, and the form of the numbers below it: in percent unless ``scale`` says otherwise."""

    heading: str
    digits: int = 1
    scale: float = 100
    signed: bool = False
    unit: str = ""

    def cell(self, value: Value, best: bool) -> Cell:
        """A value as the table shows it."""
        if value is None:
            return Cell(NONE, None, best)
        if isinstance(value, Words):
            return Cell(*value, best)
        if isinstance(value, Estimate):
            text = with_interval(
                value.mean, value.interval, signed=self.signed, scale=self.scale, digits=self.digits, unit=self.unit
            )
            return Cell(text, value.mean, best)
        return Cell(f"{self.scale * value:.{self.digits}f}{self.unit}", value, best)


COLUMNS = {
    "keep": Column("keep"),
    "accuracy": Column("accuracy"),
    "change": Column("against dense", signed=True),
    "p": Column("p", 3, 1),
    "flops_ratio": Column("FLOPs", 3, 1),
    "flops_ratio_with_vision": Column("with vision", 3, 1),
    "kv_ratio": Column("KV", 3, 1),
    "prefill_ratio": Column("time", 3, 1),
    "kept": Column("tokens kept", 1, 1),
    "hard": Column("hard"),
    "easy": Column("easy"),
    "own_dense": Column("its own dense"),
    "on_kept": Column("attention on what stays", unit=" %"),
    "l1": Column("on the image", unit=" %"),
    "entropy": Column("entropy", 3, 1),
    "hoyer": Column("Hoyer", 3, 1),
    "training_seconds": Column("minutes", 1, 1 / 60),
}


def columns(keys: Iterable[str]) -> dict[str, Column]:
    """Some of the columns, in the order asked for."""
    return {key: COLUMNS[key] for key in keys}


def against(name: str) -> Column:
    """Paired differences from another line, or from what ``name`` calls it."""
    return Column(f"against {name}", signed=True)


def task_columns(tasks: Iterable[str]) -> dict[str, Column]:
    """Accuracies by task."""
    return {f"accuracy/{task}": Column(task) for task in tasks}


def by_task(
    accuracy: Mapping[str, float], intervals: Mapping[str, Sequence[float] | None] | None = None
) -> dict[str, Value]:
    """The values of ``task_columns``, with their ``intervals`` where these are to be shown."""
    shown = intervals or {}
    return {
        f"accuracy/{task}": Words(with_interval(share, shown[task]), share) if task in shown else share
        for task, share in accuracy.items()
    }


def table(
    lines: Sequence[Line], columns: Mapping[str, Column], first: str = "method"
) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells: a line's name, then its values."""
    rows = []
    for line in lines:
        cells = [column.cell(line.values.get(key), key in line.best) for key, column in columns.items()]
        rows.append([Cell(line.name, line.name, False), *cells])
    return [first, *(column.heading for column in columns.values())], rows
