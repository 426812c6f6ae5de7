"""Every method against the dense model and against random, on the same examples: the table of docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunekit import ranks
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.run import Evaluation, evaluate, finished, holds, metric_of, sign, write_json
from prunekit.evaluation.statistics import accuracies, intervals
from prunekit.models import LoadedModel
from prunekit.presets import method, preset
from prunekit.pruner import Pruner

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
CONTROL = "random"
COSTS = ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")


@dataclass
class Runs:
    """What all runs of a table share; images are encoded once for all of them."""

    loaded: LoadedModel
    examples: Sequence[Example]
    folder: Path
    data: str
    batch_size: int
    max_new_tokens: int
    seeds: int
    resume: bool
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.loaded)

    def run(self, pruner: Pruner, place: str) -> Evaluation:
        """One evaluation in its own folder. With ``resume`` a finished one of the same content is read again, a begun
        one is gone on with, and one of another content (other weights, say) is made anew."""
        folder = self.folder / place
        signature = sign(self.loaded, pruner, self.data, self.max_new_tokens, metric_of(self.examples))
        if self.resume and (done := finished(folder, signature, self.examples)) is not None:
            return done
        return evaluate(
            self.loaded,
            self.examples,
            pruner,
            folder,
            data=self.data,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            resume=self.resume and holds(folder, signature),
            batcher=self.batcher,
        )


@dataclass
class Entry:
    """One method at one keep ratio: right answers of each example (a mean over seeds), and what the runs cost."""

    name: str
    keep: float
    correct: list[float] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    kept: float = 0.0
    seeds: int = 1
    costs: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None


def pruners(name: str, keep: float, variant: str | None, seeds: int) -> list[Pruner]:
    """A method at a keep ratio; one for each seed if it draws at random."""
    plain = method(name, keep_ratio=keep, variant=variant if _has_variants(name, variant) else None)
    if not plain.scorer.draws or plain.selector.ignores_scores:
        return [plain]
    scorer = preset(name)["scorer"]
    return [method(name, keep_ratio=keep, scorer={**scorer, "seed": seed}) for seed in range(seeds)]


def _has_variants(name: str, variant: str | None) -> bool:
    return variant is not None and any(hasattr(part, "variant") for part in method(name).components.values())


def measure(runs: Runs, name: str, keep: float, variant: str | None) -> Entry:
    """Run one method; what it cannot do on this model is its entry's ``refusal``."""
    entry = Entry(name, keep)
    try:
        made = pruners(name, keep, variant, runs.seeds)
        found = [runs.run(p, f"{name}/keep_{keep:g}/seed_{seed}") for seed, p in enumerate(made)]
    except PrunekitError as error:
        entry.refusal = str(error)
        return entry
    entry.correct = np.mean([[float(row["correct"]) for row in run.rows] for run in found], axis=0).tolist()
    entry.dense = [float(row["dense_correct"]) for row in found[0].rows]
    entry.kept = float(np.mean([len(row["kept"]) for run in found for row in run.rows]))
    entry.seeds = len(found)
    for cost in COSTS:
        values = [run.metrics[cost] for run in found]
        entry.costs[cost] = None if None in values else float(np.mean(values))
    entry.costs["time_with_vision"] = found[0].metrics["prefill_ratio_includes_vision"]
    return entry


def compare(runs: Runs, names: Sequence[str], keeps: Sequence[float], variant: str | None = None) -> dict[str, Any]:
    """All methods at all keep ratios: plain data with accuracies, paired differences and 95 % intervals."""
    ordered = [CONTROL, *(n for n in names if n != CONTROL)]  # the control first: the others are compared with it
    cells = []
    for keep in keeps:
        entries = [measure(runs, name, keep, variant) for name in ordered]
        control = entries[0].correct
        cells += [_cell(runs.examples, entry, control) for entry in entries]
    tasks = sorted({e.task for e in runs.examples})
    head = {"model": runs.loaded.name, "data": runs.data, "examples": len(runs.examples), "tasks": tasks}
    return {"schema": 1, **head, "variant": variant, "dense": _dense(runs.examples, cells), "cells": cells}


def _cell(examples: Sequence[Example], entry: Entry, control: list[float]) -> dict[str, Any]:
    cell: dict[str, Any] = {"method": entry.name, "keep_ratio": entry.keep, "refusal": entry.refusal}
    if entry.refusal is not None:
        return cell
    values = {"accuracy": entry.correct, "change": np.subtract(entry.correct, entry.dense).tolist()}
    if control:
        values["over_random"] = np.subtract(entry.correct, control).tolist()
    for name, numbers in values.items():
        cell[name], cell[f"{name}_ci"] = accuracies(examples, numbers), intervals(examples, numbers)["mean"]
    return {**cell, "kept": entry.kept, "seeds": entry.seeds, **entry.costs, "dense": entry.dense}


def _dense(examples: Sequence[Example], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The dense model's accuracy, taken out of the cells."""
    found = [cell.pop("dense") for cell in cells if "dense" in cell]
    if not found:
        raise PrunekitError("no method could be run on this model")
    return {"accuracy": accuracies(examples, found[0]), "accuracy_ci": intervals(examples, found[0])["mean"]}


def write_results(results: dict[str, Any], folder: Path, file: str | None) -> None:
    """``results.json`` and ``results.md`` in the run folder; the same table between the markers of ``file``."""
    from prunekit.evaluation.markdown import render

    if not ranks.is_first():
        return
    text = render(results)
    write_json(folder / "results.json", results)
    (folder / "results.md").write_text(text)
    print(text)
    where = [str(folder / "results.json")]
    if file is not None:
        put_between(Path(file), text)
        where.append(file)
    print(f"files: {', '.join(where)}")


def put_between(path: Path, text: str) -> None:
    """Replace what stands between the markers of a file by ``text``; without markers it goes to the end."""
    old = path.read_text() if path.exists() else ""
    before, found, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"{before.rstrip()}\n\n{BEGIN}\n{text.strip()}\n{END}\n{after.lstrip() and chr(10) + after.lstrip()}"
    )
