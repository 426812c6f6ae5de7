"""A sweep's folder: its jobs as planned, and the outcome of each. Jobs tell each other what they did by files alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.files import read_json

PLAN = "sweep.json"
"""A sweep's jobs as planned, by ``hydra_plugins/prunekit_rows.py``."""

ERROR = "error.txt"
"""In the folder of a sweep's job that has no result: its overrides and why, one line."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a planned job.

    Attributes:
        row, label, values: its row, the name of the row in a table, and what varies within the row, as planned.
        folder: the job's.
        error: why there is no result, None if there is one.
    """

    row: str
    label: str
    values: dict[str, str]
    folder: Path
    error: str | None


def planned(sweep: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep over rows as planned; empty for any other folder."""
    if not (sweep / PLAN).exists():
        return []
    plan = read_json(sweep / PLAN)
    if not isinstance(plan, dict):
        raise PrunekitError(f"'{sweep / PLAN}' cannot be read: it must hold a mapping")
    jobs = plan.get("jobs", [])
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise PrunekitError(f"'{sweep / PLAN}': 'jobs' must be a list of mappings")
    return jobs


def outcomes(sweep: Path) -> list[Outcome]:
    """The planned jobs of a sweep over rows, in order; empty for any other folder."""
    places = [(job, sweep / job["folder"]) for job in planned(sweep)]
    return [
        Outcome(job["row"], job.get("label", job["row"]), job["values"], place, failure(place)) for job, place in places
    ]


def plan_entry(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The sweep around a job's folder and the job as its plan has it; None outside a sweep over rows."""
    for sweep in folder.resolve().parents:
        if (sweep / PLAN).exists():
            name = folder.resolve().relative_to(sweep).as_posix()
            job = next((job for job in planned(sweep) if job.get("folder") == name), None)
            return None if job is None else (sweep, job)
    return None


def failure(folder: Path) -> str | None:
    """Why a sweep's job has no result, None if it has one."""
    if (folder / ERROR).exists():
        return (folder / ERROR).read_text(errors="replace").strip()
    return None if folder.is_dir() else "was not begun"


@contextmanager
def reporting(folder: Path, words: str) -> Iterator[None]:
    """Around a sweep's job: ``error.txt`` is written first and deleted on success, so that a job whose process dies is
    reported too."""
    (folder / ERROR).write_text(f"{words}: did not come to its end (its process was stopped, or died)\n")
    yield
    (folder / ERROR).unlink(missing_ok=True)
