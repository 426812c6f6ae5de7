"""Finished runs, read from their folders and checked: the files are all that a table or a report needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from prunekit.data.example import Prediction
from prunekit.errors import PrunekitError
from prunekit.records import rows as predictions
from prunekit.records.folder import METRICS, RUN
from prunekit.records.identity import Identity
from prunekit.records.metrics import Method, Metrics
from prunekit.records.sweep import ERROR, failure, plan_entry

SCHEMA = 1
"""Of ``metrics.json``."""

NEEDED = {
    METRICS: ("method", "model", "data", "examples", "tokens_per_layer", "flops_ratio", "kv_ratio"),
    predictions.FILE: (
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
BEGUN = (RUN.file, predictions.FILE, ERROR)
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
    """A finished run: its folder, ``metrics.json``, the rows of ``predictions.jsonl`` by example, its identity (the
    method's alone where the folder has no ``run.json``), and the name of the row of a table that it was run for, if a
    sweep's plan names one."""

    folder: Path
    metrics: Metrics
    rows: dict[str, Prediction]
    identity: Identity
    row: str | None = None

    @property
    def method(self) -> Method:
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
        raise PrunekitError(f"report.runs='{folder}': no such folder")
    places = {path.parent for name in (METRICS, *BEGUN) for path in folder.rglob(name)}
    ordered = sorted((p for p in places if "wandb" not in p.relative_to(folder).parts), key=_natural)
    finished = [p for p in ordered if (p / METRICS).exists()]
    left_out = [_why_unfinished(p) for p in ordered if not (p / METRICS).exists()]
    if not finished:
        about = f": {left_out[0]}" if left_out else ""
        raise PrunekitError(f"report.runs='{folder}' holds no finished run{about}")
    return [read_run(p) for p in finished], left_out


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _why_unfinished(place: Path) -> str:
    reason = failure(place)
    return f"'{place}' is half-written (no metrics.json)" if reason is None else f"'{place}' failed: {reason}"


def read_run(folder: Path) -> Run:
    """The run in ``folder``, its files checked."""
    content = _json(folder / METRICS)
    schema = content.get("schema")
    if schema != SCHEMA:
        raise PrunekitError(f"'{folder / 'metrics.json'}' has schema {schema!r}; this prunekit reads {SCHEMA}")
    _need(content, folder / METRICS)
    metrics = cast(Metrics, content)
    rows, count = _rows(folder / predictions.FILE), metrics["examples"] + metrics.get("errors", 0)
    predictions.check_rows([*rows.values()], metrics, folder)
    identity = _json(folder / RUN.file) if (folder / RUN.file).exists() else content["method"]
    entry = plan_entry(folder)
    row = None if entry is None else entry[1].get("row")
    # Rows of a larger run that the folder held before stand behind those of this one.
    return Run(folder, metrics, dict(list(rows.items())[:count]), identity, str(row) if row else None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrunekitError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PrunekitError(f"'{path}' must hold a mapping, not {type(content).__name__}")
    return content


def _rows(path: Path) -> dict[str, Prediction]:
    if not path.exists():
        raise PrunekitError(f"'{path.parent}' is half-written: it has metrics.json, but no {path.name}")
    rows: dict[str, Prediction] = {}
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
        rows[row["id"]] = cast(Prediction, row)
    return rows


def _need(entries: dict[str, object], path: Path, where: str = "") -> None:
    for key in NEEDED[path.name]:
        if key not in entries:
            raise PrunekitError(f"'{path}' has no '{key}'{where}")
    for key, (form, words) in FORMS.items():
        if key in entries and not isinstance(entries[key], form):
            raise PrunekitError(f"'{path}': '{key}' must be {words}, not {entries[key]!r}{where}")
    for key in NUMBERS:
        value = entries.get(key, 0)
        known = value is not None or key not in MAYBE
        if known and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise PrunekitError(f"'{path}': '{key}' must be a number, not {value!r}{where}")
    for key in ("kept", "tokens_per_layer"):
        listed = entries.get(key)
        if isinstance(listed, list) and not all(isinstance(entry, int | float) for entry in listed):
            raise PrunekitError(f"'{path}': '{key}' must list numbers{where}")
    method = entries.get("method")
    if (isinstance(method, dict) and "scorer" not in method) or entries.get("tokens_per_layer") == []:
        raise PrunekitError(f"'{path}': 'method' has no 'scorer', or 'tokens_per_layer' is empty")
