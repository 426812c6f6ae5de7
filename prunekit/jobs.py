"""A job's folder: what it holds a run of, whether that run is finished, and what became of a sweep's jobs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.files import write_json
from prunekit.models import file_digest, source_digest
from prunekit.registry import METHOD_MODULES

RECORD = "job.json"
"""What a job's run is of, and whether it came to its end."""

PLAN = "sweep.json"
"""A sweep's jobs as planned, by ``hydra_plugins/prunekit_rows.py``."""

ERROR = "error.txt"
"""In the folder of a sweep's job that has no result: its overrides and why, one line."""

NO_MATTER = (
    *(
        "resume",
        "overwrite",
        "logger",
        "table",
        "rows",
        "runs",
        "report",
        "bench",
        "shape",
        "batch_size",
        "device",
        "objective",
    ),
    *("train", "study"),
)
"""Parts of a configuration that a run may be resumed without: they do not change what is answered."""


@dataclass
class Job:
    """One job's folder and what its run is of (``identity``)."""

    folder: Path
    identity: dict[str, Any]

    def finished(self) -> dict[str, Any] | None:
        """The metrics of a finished run of the same configuration, None if there is no run or it is not finished. A run
        of another ``data.limit`` is not finished: its predictions stand, and others join them. Nor is one with rows in
        error.

        Raises:
            PrunekitError: if the folder holds a run of another configuration.
        """
        record = _read(self.folder / RECORD)
        if not isinstance(record, dict) or "identity" not in record:
            return None
        there, here = (_without_limit(found) for found in (record["identity"], self.identity))
        if (change := difference(there, here)) is not None:
            raise PrunekitError(f"resume: '{self.folder}' holds a run of another configuration ({change})")
        whole = record.get("finished") and record["identity"] == self.identity
        metrics = _read(self.folder / "metrics.json") if whole else None
        if not isinstance(metrics, dict) or not isinstance(examples := metrics.get("examples"), int):
            return None
        if metrics.get("errors"):  # its rows are tried again
            return None
        return metrics if _rows(self.folder) >= examples else None

    def write(self, finished: bool) -> None:
        """Say what the run is of, before it begins and when it is finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RECORD, {"identity": self.identity, "finished": finished})


def _without_limit(identity: dict[str, Any]) -> dict[str, Any]:
    data = identity.get("data")
    return identity if not isinstance(data, dict) else {**identity, "data": {**data, "limit": None}}


def identity(config: dict[str, Any], components: Iterable[object] = ()) -> dict[str, Any]:
    """What a run is of: its configuration as far as it matters, the content of a model's files (a hub's model is known
    by name and revision), of the method files that ``components`` come from, and of their weights: a file that was
    edited makes another run. Nothing is loaded for it."""
    matters = {key: value for key, value in config.items() if key not in NO_MATTER}
    matters["model"] = {**matters["model"], "content": source_digest(str(config["model"]["name"]))}
    if (adapter := matters["model"].get("adapter")) is not None:
        from prunekit.adapters import digest

        matters["model"]["adapter_content"] = digest(adapter)
    rows = Path(str(matters.get("data", {}).get("path") or "."))
    if rows.is_file():
        matters["data"] = {**matters["data"], "content": file_digest(rows)}
    parts = list(components)
    modules = {type(part).__module__ for part in parts}
    files = [Path(str(sys.modules[name].__file__)) for name in modules if name.startswith(METHOD_MODULES)]
    files += [Path(path) for part in parts if (path := getattr(part, "weights", None)) and Path(path).is_file()]
    matters["files"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(files)}
    return json.loads(json.dumps(matters, default=str))


def difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first entry in which two configurations differ, in words; None if they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            if found := difference(there.get(key), here.get(key), f"{name}.{key}" if name else key):
                return found
        return None
    return None if there == here else f"{name}: {there} there, {here} here"


@dataclass(frozen=True)
class Outcome:
    """What became of a planned job.

    Attributes:
        row, values: its row and what varies within the row, as planned.
        folder: the job's.
        error: why there is no result, None if there is one.
    """

    row: str
    values: dict[str, str]
    folder: Path
    error: str | None


def outcomes(sweep: Path) -> list[Outcome]:
    """The planned jobs of a sweep over rows, in order; empty for any other folder."""
    plan = _read(sweep / PLAN)
    jobs = plan.get("jobs", []) if isinstance(plan, dict) else []
    return [Outcome(job["row"], job["values"], sweep / job["folder"], failure(sweep / job["folder"])) for job in jobs]


def failure(folder: Path) -> str | None:
    """Why a sweep's job has no result, None if it has one."""
    if (folder / ERROR).exists():
        return (folder / ERROR).read_text().strip()
    return None if folder.is_dir() else "was not begun"


@contextmanager
def reporting(folder: Path, words: str) -> Iterator[None]:
    """Around a sweep's job: ``error.txt`` stands in its folder until it has come to its end, so that one whose process
    dies has said so beforehand."""
    (folder / ERROR).write_text(f"{words}: did not come to its end (its process was stopped, or died)\n")
    yield
    (folder / ERROR).unlink(missing_ok=True)


def unwritable(path: Path) -> str | None:
    """Why a file cannot be written at ``path``, None if it can; nothing is created or changed."""
    if path.is_dir():
        return "it is a folder"
    there = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if there != path and not there.is_dir():
        return f"'{there}' is no folder"
    return None if os.access(there, os.W_OK) else f"no permission to write '{there}'"


def _rows(folder: Path) -> int:
    """Whole rows of the run that a folder is signed as."""
    from prunekit.evaluation.rows import read, run_digest

    name = run_digest(_read(folder / "run.json") or {})
    return sum(row.get("run") == name for row in read(folder))


def _read(path: Path) -> Any:
    """The JSON of a file; None if there is none, or it is cut short."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None
