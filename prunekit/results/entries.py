"""Runs joined to the rows of a table: seeds of one method together, each with a name that tells it from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.records.metrics import Method
from prunekit.records.runs import Question, Run
from prunekit.registry import KINDS, registry
from prunekit.results.seeds import COSTS, answers, costs, kept, mean

USUAL = {"selector": "topk", "reducer": "drop", "positions": "keep"}
SHARES = ("keep_ratio", "keep_tokens", "budget")
DENSE = "dense"


@dataclass
class Entry:
    """One method at one budget.

    Attributes:
        label: names it among all entries; ``method`` and ``keep`` ("0.5", "64 tokens", "flops:0.5") are its parts.
        runs: one a seed.
        correct: right answers, [seeds, examples].
        costs: pruned over dense, means over seeds; None where unknown.
        tokens: mean real tokens in each decoder layer.
        kept: mean visual tokens after the last cut; None for the dense model.
        sees_answer: whether the scorer is told where the answer is.
    """

    label: str
    method: str
    keep: str
    runs: list[Run]
    correct: np.ndarray
    costs: dict[str, float | None]
    tokens: list[float]
    kept: float | None
    preset: str | None = None
    sees_answer: bool = False
    options: dict[str, object] = field(default_factory=dict)

    @property
    def competes(self) -> bool:
        """Whether it may be the best: neither the dense model nor a scorer that is told the answer's place may."""
        return bool(self.runs) and not self.sees_answer


def common_questions(runs: Sequence[Run]) -> tuple[list[Question], list[str]]:
    """The examples that all runs answered, in the order of the first, and what is to be noted about them.

    Raises:
        PrunekitError: for runs of several data sets or models, or of different examples: they cannot be compared.
    """
    for key in ("data", "model"):
        counts = Counter(str(run.metrics[key]) for run in runs)
        if len(counts) > 1:
            named = ", ".join(f"'{name}' ({count} run{'s' * (count > 1)})" for name, count in counts.most_common())
            raise PrunekitError(f"one report is of one {key}; these runs are of {len(counts)}: {named}")
    first = runs[0]
    for run in runs[1:]:
        if run.rows.keys() != first.rows.keys():
            sizes = f"{len(first.rows)} in '{first.folder}', {len(run.rows)} in '{run.folder}'"
            raise PrunekitError(f"these runs answered different examples and cannot be compared: {sizes}")
    broken = {key for run in runs for key, row in run.rows.items() if row.get("error")}
    if len(broken) == len(first.rows):
        raise PrunekitError(f"no example of '{first.folder}' could be used")
    notes = [f"{len(broken)} of {len(first.rows)} examples could not be used and are left out"] if broken else []
    usable = Run(first.folder, first.metrics, {k: r for k, r in first.rows.items() if k not in broken}, {})
    questions = list(usable.questions.values())
    return questions, notes + _dense_note(runs, questions)


def _dense_note(runs: Sequence[Run], questions: Sequence[Question]) -> list[str]:
    """Dense answers are the same in all runs unless weights, device or number format differ."""
    first = runs[0].rows
    differing = max(
        sum(run.rows[q.id]["dense_prediction"] != first[q.id]["dense_prediction"] for q in questions) for run in runs
    )
    if not differing:
        return []
    return [f"dense answers differ between runs, in up to {differing} examples; the first run's stand for dense"]


def make_entries(runs: Sequence[Run], questions: Sequence[Question]) -> tuple[list[Entry], list[str]]:
    """Entries in order of their first run, the dense model first, and notes on runs that were there twice."""
    groups: dict[str, dict[str, Run]] = {}
    notes = []
    for run in runs:
        seeds: dict[str, object] = {}
        seedless = _without_seeds(run.identity, seeds)
        if not seeds and scorer_fact(run, "draws"):  # no run.json: the run's seed is the scorer's
            seeds = {"seed": run.metrics.get("seed")}
        group = groups.setdefault(json.dumps([run.row, seedless], sort_keys=True), {})
        seed = json.dumps(seeds, sort_keys=True)
        if seed in group:
            notes.append(f"'{run.folder}' repeats '{group[seed].folder}', which counts")
        group.setdefault(seed, run)
    entries = [_entry(list(group.values()), questions) for group in groups.values()]
    # The dense model's row is made of the dense answers that all runs hold; a run of it says nothing more.
    entries = [e for e in entries if e.method != DENSE] or entries
    name_apart(entries)
    return [_dense(runs[0], questions), *entries], notes


def scorer_fact(run: Run, flag: str) -> bool:
    """A class flag of the scorer that a run used: as the run recorded it, else as the registry knows the scorer; False
    for one that neither knows."""
    cls = registry.classes("scorer").get(str(run.method["scorer"]))
    return bool(run.method.get(flag, getattr(cls, flag, False)))


def _without_seeds(options: Mapping[str, object], seeds: dict[str, object], path: str = "") -> dict[str, object]:
    """``options`` less every "seed" in it; those go to ``seeds`` under their paths."""
    rest: dict[str, object] = {}
    for key, value in options.items():
        if key == "seed":
            seeds[f"{path}{key}"] = value
        else:
            rest[key] = _without_seeds(value, seeds, f"{path}{key}.") if isinstance(value, dict) else value
    return rest


def _entry(runs: list[Run], questions: Sequence[Question]) -> Entry:
    method, ids = runs[0].method, [q.id for q in questions]
    preset = method.get("name")
    return Entry(
        label="",
        method=runs[0].row or preset or "",
        keep=share_of(method),
        runs=runs,
        correct=answers(runs, ids),
        costs=costs(runs),
        tokens=np.mean([run.metrics["tokens_per_layer"] for run in runs], axis=0).tolist(),
        kept=kept(runs, ids),
        preset=preset,
        sees_answer=scorer_fact(runs[0], "uses_regions"),
        options=_flat(_without_seeds(runs[0].identity, {})) | {"layers": method.get("layers")},
    )


def share_of(method: Method) -> str:
    """The budget of a run, in the words that it was given in."""
    if method.get("budget") is not None:
        return str(method["budget"])
    if method.get("keep_tokens") is not None:
        return f"{method['keep_tokens']} tokens"
    return "–" if method.get("keep_ratio") is None else f"{method['keep_ratio']:g}"


def _flat(options: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Options with dots between the levels; a component's name stands under its kind."""
    flat: dict[str, object] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix.rstrip(".") if key == "name" and prefix else f"{prefix}{key}"] = value
    return flat


def _dense(run: Run, questions: Sequence[Question]) -> Entry:
    correct = answers([run], [q.id for q in questions], "dense_correct")
    length = mean(run.rows[q.id].get("prompt_tokens") for q in questions) or run.metrics["tokens_per_layer"][0]
    tokens = [length] * len(run.metrics["tokens_per_layer"])
    return Entry(DENSE, DENSE, "1", [], correct, dict.fromkeys(COSTS, 1.0), tokens, None)


def name_apart(entries: Sequence[Entry]) -> None:
    """Set ``method`` and ``label`` so that no two labels are equal: parts of the composition that all share are left
    out, then options that differ are added, then layers, then a number. A row's or method's name stands as it is."""
    unnamed = [e for e in entries if not e.method]
    kinds = [kind for kind in KINDS[:3] if len({str(e.options.get(kind)) for e in unnamed}) > 1]
    for entry in unnamed:
        parts = [str(entry.options.get(kind)) for kind in kinds or KINDS[:3]]
        parts += [str(entry.options[k]) for k, usual in USUAL.items() if entry.options.get(k, usual) != usual]
        entry.method = " · ".join(parts)
    for alike in _alike(entries):
        keys = _differences(alike)
        for entry in alike:
            words = [f"{key}={_plain(entry.options.get(key))}" for key in keys]
            entry.method = " ".join([entry.method, *words])
    for alike in _alike(entries):
        for number, entry in enumerate(alike, 1):
            entry.method = f"{entry.method} #{number}"
    several = len({e.keep for e in entries}) > 1
    for entry in entries:
        entry.label = f"{entry.method} @ {entry.keep}" if several or entry.method == DENSE else entry.method


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.method, entry.keep), []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def _differences(alike: Sequence[Entry]) -> list[str]:
    """The fewest options, in order of their names, that tell all of these apart; all that differ if none do."""
    keys = sorted({key for e in alike for key in e.options} - set(SHARES) - {"name", "layers", "model"})
    varying = [key for key in keys if len({json.dumps(e.options.get(key)) for e in alike}) > 1]
    for key in [*varying, "layers"]:
        if len({json.dumps(e.options.get(key)) for e in alike}) == len(alike):
            return [key]
    return varying


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
