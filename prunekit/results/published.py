"""Ours beside published values: the cells of a target of ``conf/published.yaml``, as a sweep over rows ran them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from prunekit.errors import PrunekitError, check_choice
from prunekit.files import read_yaml
from prunekit.metrics import Side, corpus_sides, metric
from prunekit.options import Number, Options, Text
from prunekit.records.runs import Run, read_run
from prunekit.records.sweep import outcomes
from prunekit.registry import source_folder
from prunekit.results.columns import Estimate
from prunekit.results.markdown import markdown_table
from prunekit.results.numbers import NONE, with_interval
from prunekit.results.statistics import interval

DENSE = "dense"
RESAMPLES = 500
"""Bootstrap draws of a number over all rows, each of which is computed anew."""


class Measure(Options):
    """What a benchmark's published number is: ``accuracy``, or a name of ``extra``, times ``scale``."""

    number: Text = "accuracy"
    scale: Number = 100.0
    words: tuple[Text, ...] = ()


class Row(Options):
    """A method: the ``words`` that run it, none for the dense model, and its ``values`` by benchmark."""

    words: tuple[Text, ...] = ()
    values: dict[str, Number]


class Target(Options):
    """Published values of one origin."""

    lineage: Text
    words: tuple[Text, ...]
    benchmarks: dict[str, Measure]
    rows: dict[str, Row]

    def cells(self) -> Iterator[tuple[str, str, float]]:
        """Row, benchmark and published value of each cell."""
        for name, row in self.rows.items():
            for benchmark, value in row.values.items():
                yield name, benchmark, value


@functools.cache
def target_named(name: str) -> Target:
    """A target of the file; an unknown one raises with the nearest."""
    targets = read_yaml(source_folder("conf") / "published.yaml")
    check_choice("target", name, targets)
    return Target(**targets[name])


def rows_of(name: str) -> dict[str, list[str]]:
    """``sweep.rows`` of a target: a job for each cell, and for a benchmark of which only the dense model's value is
    known one that keeps all tokens."""
    target = target_named(name)
    jobs: dict[str, list[str]] = {}
    pruned = {benchmark for row, benchmark, _ in target.cells() if row != DENSE}
    for row, benchmark, _ in target.cells():
        if row == DENSE and benchmark in pruned:
            continue
        own = target.rows[row].words or ("method=random", "keep_ratio=1.0")
        jobs[_job(row, benchmark)] = [
            *target.words, *own, f"data={benchmark}", *target.benchmarks[benchmark].words,
        ]  # fmt: skip
    return jobs


def _job(row: str, benchmark: str) -> str:
    return f"{row} {benchmark}".replace(" %", "%").replace(" ", "_")


def measured(run: Run, measure: Measure, dense: bool) -> Estimate:
    """A run's own number, pruned or dense, in the unit of the published one, with a bootstrap interval over images.

    Raises:
        PrunekitError: for a number that the run's metric does not have.
    """
    numbers, scale = run.metrics, measure.scale
    if measure.number == "accuracy":
        own = (numbers["dense_accuracy"], numbers["dense_accuracy_ci"]) if dense else None
        accuracy, ci = own or (numbers["accuracy"], numbers["accuracy_ci"])
        return Estimate({"mean": scale * accuracy["mean"]}, ci["mean"] and [scale * end for end in ci["mean"]])
    extra = (numbers.get("dense_extra") if dense else numbers.get("extra")) or {}
    corpus = metric(str(numbers.get("metric"))).corpus
    if corpus is None or measure.number not in extra:
        raise PrunekitError(f"'{run.folder}': metrics.json has no '{measure.number}' over all its rows")
    by_image: dict[str, list[Side]] = {}
    for row, side in corpus_sides(run.rows.values(), dense):
        by_image.setdefault(row["image_id"], []).append(side)
    mean = {"mean": scale * extra[measure.number]}
    if len(by_image) < 2:
        return Estimate(mean, None)
    draws = _bootstrap([*by_image.values()], lambda rows: corpus(rows).get(measure.number, 0.0))
    return Estimate(mean, interval(scale * draws))


def _bootstrap(images: Sequence[Sequence[Side]], number: Callable[[Sequence[Side]], float]) -> np.ndarray:
    """Draws [resamples] of a number over all rows; an image that is drawn twice is two images."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(images), size=(RESAMPLES, len(images)))
    return np.array([
        number([side._replace(group=f"{place}/{side.group}") for place, i in enumerate(draw) for side in images[i]])
        for draw in drawn
    ])  # fmt: skip


def published_table(sweep: Path, name: str) -> tuple[str, dict[str, object]]:
    """The table of a target as Markdown, and its record: each cell of which something ran, ours beside the published
    value, and whether our interval covers it."""
    target = target_named(name)
    by_row = {outcome.row: outcome for outcome in outcomes(sweep)}
    runs = {row: read_run(outcome.folder) for row, outcome in by_row.items() if outcome.error is None}
    record: list[dict[str, object]] = []
    lines = []
    for row, benchmark, value in target.cells():
        jobs = [_job(row, benchmark)] if row != DENSE else [_job(other, benchmark) for other in target.rows]
        run = next((runs[job] for job in jobs if job in runs), None)
        failed = next((by_row[job].error for job in jobs if job in by_row), None)
        if run is None and failed is None:  # left out of this sweep
            continue
        measure, cell = target.benchmarks[benchmark], {"row": row, "benchmark": benchmark, "published": value}
        if run is None:
            record.append({**cell, "error": failed})
            lines.append([row, benchmark, f"{value:g}", NONE, NONE, f"no result: {failed}"])
            continue
        ours = measured(run, measure, dense=row == DENSE)
        covered = None if ours.interval is None else ours.interval[0] <= value <= ours.interval[1]
        side = "above" if ours.interval and value > ours.interval[1] else "below"
        verdict = {None: NONE, True: "covered", False: f"published is {side}"}[covered]
        lines.append([
            row, benchmark, f"{value:g}", with_interval(ours.mean, ours.interval, scale=1),
            str(run.metrics["examples"]), verdict,
        ])  # fmt: skip
        record.append({**cell, "ours": ours.mean, "ci": ours.interval, "examples": run.metrics["examples"],
                       "covered": covered})  # fmt: skip
    head = (
        f"`{name}`: {target.lineage}. Ours with 95 % bootstrap intervals over images; a published value has an "
        "interval of its own, which is not known."
    )
    headings = ["method", "benchmark", "published", "ours", "questions", "our interval"]
    table = markdown_table(headings, lines, align="llrrrl")
    return f"{head}\n\n{table}\n", {"schema": 1, "target": name, "lineage": target.lineage, "cells": record}
