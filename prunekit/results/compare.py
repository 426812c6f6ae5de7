"""What a table says of each entry: accuracy, paired differences with tests, cost, and hard and easy questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunekit.errors import UnknownNameError
from prunekit.records.runs import Question
from prunekit.results.columns import Estimate
from prunekit.results.difficulty import groups, is_downsampled
from prunekit.results.entries import DENSE, Entry
from prunekit.results.statistics import (
    Interval,
    accuracies,
    bootstrap,
    holm,
    interval,
    over_seeds,
    p_value,
    seed_interval,
    task_names,
)

RESAMPLES = 10_000
"""Draws behind intervals and p-values: the smallest p is 2/10001, small enough for Holm over a hundred rows."""

SIGNIFICANT = 0.05
CONTROL = "random"


@dataclass
class Difference:
    """An entry minus another on the same examples, means over tasks."""

    other: str
    value: float
    interval: Interval
    p: float
    adjusted: float = 1.0

    @property
    def estimate(self) -> Estimate:
        """The difference with its interval, as a table has it."""
        return Estimate({"mean": self.value}, self.interval)


@dataclass
class Group:
    """Accuracy on the examples that a downsampled image, the ``control``, gets wrong (hard) or right (easy)."""

    control: str
    examples: int
    accuracy: float
    interval: Interval


@dataclass
class Row:
    """A row of the table. ``accuracy`` and ``intervals`` have "mean" and the tasks; ``best`` the columns in which the
    entry is better than every other of its budget by Holm-adjusted paired tests."""

    entry: Entry
    accuracy: dict[str, float]
    intervals: dict[str, Interval]
    over_dense: Difference
    over_reference: Difference | None = None
    seeds: int = 1
    seed_interval: Interval = None
    groups: dict[str, Group] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)


@dataclass
class Comparison:
    """All rows, those of one budget together, the most accurate first; ``reference`` as it was chosen."""

    rows: list[Row]
    tasks: list[str]
    questions: list[Question]
    reference: str
    model: str
    data: str
    resamples: int
    notes: list[str] = field(default_factory=list)

    @property
    def controls(self) -> list[str]:
        """The downsampled runs that tell hard questions from easy ones."""
        return list(dict.fromkeys(group.control for row in self.rows for group in row.groups.values()))


def choose_reference(entries: Sequence[Entry], wished: str | None) -> str:
    """The label, method or preset to compare with: as wished, else ``random`` if it was run, else the dense model.

    Raises:
        UnknownNameError: if nothing is called so.
    """
    known = {name for e in entries for name in (e.label, e.method, e.preset) if name}
    if wished is None:
        return CONTROL if CONTROL in known else DENSE
    if str(wished) not in known:
        raise UnknownNameError("report.reference", wished, {n for e in entries for n in (e.label, e.method)})
    return str(wished)


def matched(entry: Entry, candidates: Sequence[Entry]) -> Entry | None:
    """The candidate of the entry's own budget, else that with the nearest number of kept tokens."""
    same = [c for c in candidates if c.keep == entry.keep]
    if same or not candidates:
        return same[0] if same else None
    return min(candidates, key=lambda c: abs((c.kept or 0) - (entry.kept or 0)))


def compare(
    entries: Sequence[Entry], questions: Sequence[Question], reference: str | None = None, *, model: str, data: str
) -> Comparison:
    """Every entry against the dense model (the first entry) and against ``reference``, by one paired bootstrap."""
    chosen = choose_reference(entries, reference)
    tasks = task_names(questions)
    draws = dict(zip((e.label for e in entries), _draws(entries, questions), strict=True))
    rows = [_row(e, draws, entries[0], tasks, questions) for e in entries]
    _test(rows, entries, chosen, draws, questions)
    by_budget: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (-r.accuracy["mean"], r.entry.label)):
        by_budget.setdefault(row.entry.keep, []).append(row)
    for group in by_budget.values():
        _mark_best(group, draws, ["mean", *tasks])
    _tell_apart(rows, entries, questions)
    ordered = sorted(by_budget.values(), key=lambda g: -np.mean([r.entry.kept or np.inf for r in g]))
    return Comparison([r for g in ordered for r in g], tasks, list(questions), chosen, model, data, RESAMPLES)


def _draws(entries: Sequence[Entry], questions: Sequence[Question]) -> list[np.ndarray]:
    """Bootstrap draws of each entry, [resamples, 1 + tasks]; the same images in each draw for all of them."""
    drawn = bootstrap(questions, np.concatenate([e.correct for e in entries]), resamples=RESAMPLES)
    ends = np.cumsum([len(e.correct) for e in entries])
    parts = np.split(drawn, ends[:-1], axis=1)
    return [p[:, 0] if p.shape[1] == 1 else over_seeds(p, number) for number, p in enumerate(parts)]


def _row(
    entry: Entry, draws: dict[str, np.ndarray], dense: Entry, tasks: list[str], questions: Sequence[Question]
) -> Row:
    per_seed = [accuracies(questions, seed.tolist()) for seed in entry.correct]
    columns = {name: draws[entry.label][:, i] for i, name in enumerate(("mean", *tasks))}
    return Row(
        entry,
        accuracy={name: float(np.mean([one[name] for one in per_seed])) for name in columns},
        intervals={name: interval(column) for name, column in columns.items()},
        over_dense=_difference(entry, dense, questions, draws),
        seeds=len(per_seed),
        seed_interval=seed_interval([one["mean"] for one in per_seed]),
    )


def _difference(entry: Entry, other: Entry, questions: Sequence[Question], draws: dict[str, np.ndarray]) -> Difference:
    change = _change(draws, entry, other, 0)
    value = accuracies(questions, (entry.correct.mean(0) - other.correct.mean(0)).tolist())["mean"]
    return Difference(other.label, value, interval(change), p_value(change))


def _change(draws: dict[str, np.ndarray], entry: Entry, other: Entry, column: int) -> np.ndarray:
    change = draws[entry.label][:, column] - draws[other.label][:, column]
    return np.where(np.abs(change) < 1e-12, 0.0, change)  # equal answers, added up in another order, are equal


def _test(
    rows: Sequence[Row],
    entries: Sequence[Entry],
    reference: str,
    draws: dict[str, np.ndarray],
    questions: Sequence[Question],
) -> None:
    """Differences from the reference of each row's budget, their p-values adjusted as one family."""
    named = [e for e in entries if e.label == reference] or [e for e in entries if reference in (e.method, e.preset)]
    for row in rows:
        other = matched(row.entry, named) if row.entry.runs or len(named) == 1 else None
        if other is not None and other is not row.entry:
            row.over_reference = _difference(row.entry, other, questions, draws)
    tested = [row.over_reference for row in rows if row.over_reference is not None]
    for difference, adjusted in zip(tested, holm([d.p for d in tested]), strict=True):
        difference.adjusted = adjusted


def _mark_best(group: Sequence[Row], draws: dict[str, np.ndarray], columns: list[str]) -> None:
    rivals = [row for row in group if row.entry.competes]
    for number, name in enumerate(columns if len(rivals) > 1 else ()):
        best = max(rivals, key=lambda row: row.accuracy[name])
        changes = [_change(draws, best.entry, row.entry, number) for row in rivals if row is not best]
        if max(holm([p_value(change) for change in changes])) < SIGNIFICANT:
            best.best.add(name)


def _tell_apart(rows: Sequence[Row], entries: Sequence[Entry], questions: Sequence[Question]) -> None:
    """Each row on what the downsampled image of its budget gets wrong, and on what it gets right; the dense model where
    there is one such run."""
    controls = [e for e in entries if e.runs and is_downsampled(e.runs[0].method)]
    for row in rows:
        control = matched(row.entry, controls) if row.entry.runs or len(controls) == 1 else None
        if control is None or control is row.entry:
            continue
        for name, places in groups(control.correct).items():
            asked, right = [questions[i] for i in places], row.entry.correct[:, places]
            drawn = bootstrap(asked, right, resamples=RESAMPLES)[:, :, 0]
            accuracy = accuracies(asked, right.mean(0).tolist())["mean"]
            row.groups[name] = Group(control.label, len(places), accuracy, interval(over_seeds(drawn)))
