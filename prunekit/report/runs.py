"""Finding and reading the runs of a folder: what a report is made of, checked before anything is written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.rows import check_rows
from prunekit.evaluation.run import SCHEMA, SIGNATURE

NEEDED = {
    "metrics.json": ("method", "model", "data", "examples", "tokens_per_layer", "flops_ratio", "kv_ratio"),
    "predictions.jsonl": (
        "id", "task", "question", "prediction", "dense_prediction", "correct", "dense_correct", "kept",
    ),
}  # fmt: skip
FORMS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("id", "task", "question", "prediction", "dense_prediction", "image_id"), (str, "a text")),
    **dict.fromkeys(("kept", "answers", "tokens_per_layer"), (list, "a list")),
    **dict.fromkeys(("examples", "errors", "prompt_tokens"), (int, "a whole number")),
    "method": (dict, "a mapping"),
}
NUMBERS = ("correct", "dense_correct", "flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio")
MAYBE = ("flops_ratio_with_vision", "prefill_ratio")  # null where nothing is known
PLAN = "sweep.json"
"""In a sweep's folder: its jobs, each with its folder and the row of the table that it is for."""

BEGUN = (SIGNATURE, "predictions.jsonl", "error.txt")
"""Files of which one at least stands in the folder of a run that was begun."""


@dataclass(frozen=True)
class Question:
    """One example as its rows tell it."""

    id: str
    image_id: str
    task: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, ``metrics.json``, the rows of ``predictions.jsonl`` by example, ``run.json``, and the
    name of the row of a table that it was run for, if a sweep's plan names one."""

    folder: Path
    metrics: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    signature: dict[str, Any]
    row: str | None = None

    @property
    def method(self) -> dict[str, Any]:
        """The method as ``metrics.json`` names it."""
        return self.metrics["method"]

    @cached_property
    def questions(self) -> dict[str, Question]:
        """The examples by id."""
        return {
            key: Question(key, r.get("image_id", key), r["task"], r["question"], tuple(r.get("answers", ())))
            for key, r in self.rows.items()
        }


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """All finished runs below ``folder``, in order of their paths, and a line for each that was begun only.

    Raises:
        PrunekitError: if there is no finished run, or the files of one are broken, incomplete or of another version.
    """
    if not folder.is_dir():
        raise PrunekitError(f"runs='{folder}': no such folder")
    places = {path.parent for name in ("metrics.json", *BEGUN) for path in folder.rglob(name)}
    ordered = sorted((p for p in places if "wandb" not in p.relative_to(folder).parts), key=_natural)
    finished = [p for p in ordered if (p / "metrics.json").exists()]
    left_out = [_why_unfinished(p) for p in ordered if not (p / "metrics.json").exists()]
    if not finished:
        about = f": {left_out[0]}" if left_out else ""
        raise PrunekitError(f"runs='{folder}' holds no finished run{about}")
    return [read_run(p) for p in finished], left_out


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _why_unfinished(place: Path) -> str:
    if (place / "error.txt").exists():
        return f"'{place}' failed: {(place / 'error.txt').read_text(errors='replace').strip()}"
    return f"'{place}' is half-written (no metrics.json)"


def read_run(folder: Path) -> Run:
    """The run in ``folder``, its files checked."""
    metrics = _json(folder / "metrics.json")
    schema = metrics.get("schema")
    if schema != SCHEMA:
        raise PrunekitError(f"'{folder / 'metrics.json'}' has schema {schema!r}; this prunekit reads {SCHEMA}")
    _need(metrics, folder / "metrics.json")
    rows, count = _rows(folder / "predictions.jsonl"), metrics["examples"] + metrics.get("errors", 0)
    check_rows([*rows.values()], metrics, folder)
    signature = _json(folder / SIGNATURE) if (folder / SIGNATURE).exists() else metrics["method"]
    # Rows of a larger run that the folder held before stand behind those of this one.
    return Run(folder, metrics, dict(list(rows.items())[:count]), signature, _row_name(folder))


def _row_name(folder: Path) -> str | None:
    """The row that the plan of the sweep around ``folder`` gives it."""
    for above in folder.resolve().parents:
        if (above / PLAN).exists():
            place = folder.resolve().relative_to(above).as_posix()
            jobs = _json(above / PLAN).get("jobs", [])
            if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
                raise PrunekitError(f"'{above / PLAN}': 'jobs' must be a list of mappings")
            return next((str(job["row"]) for job in jobs if job.get("folder") == place and job.get("row")), None)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrunekitError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise PrunekitError(f"'{path}' must hold a mapping, not {type(found).__name__}")
    return found


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        raise PrunekitError(f"'{path.parent}' is half-written: it has metrics.json, but no {path.name}")
    rows: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PrunekitError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise PrunekitError(f"'{path}' is half-written: line {number} is no JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise PrunekitError(f"'{path}': line {number} is no prediction")
        if not row.get("error"):  # an example that could not be used has no answer
            _need(row, path, f" in line {number}")
        rows[row["id"]] = row
    return rows


def _need(found: dict[str, Any], path: Path, where: str = "") -> None:
    for key in NEEDED[path.name]:
        if key not in found:
            raise PrunekitError(f"'{path}' has no '{key}'{where}")
    for key, (form, words) in FORMS.items():
        if key in found and not isinstance(found[key], form):
            raise PrunekitError(f"'{path}': '{key}' must be {words}, not {found[key]!r}{where}")
    for key in NUMBERS:
        value = found.get(key, 0)
        known = value is not None or key not in MAYBE
        if known and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise PrunekitError(f"'{path}': '{key}' must be a number, not {value!r}{where}")
    for key in ("kept", "tokens_per_layer"):
        if not all(isinstance(entry, int | float) for entry in found.get(key, ())):
            raise PrunekitError(f"'{path}': '{key}' must list numbers{where}")
    if "scorer" not in found.get("method", {"scorer": ""}) or found.get("tokens_per_layer") == []:
        raise PrunekitError(f"'{path}': 'method' has no 'scorer', or 'tokens_per_layer' is empty")


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
