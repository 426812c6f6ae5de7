"""The run folder: what it holds a run of, whether that run is finished, and whether another may go on or replace it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from prunekit.errors import FolderError, PrunekitError
from prunekit.files import read_json, write_json
from prunekit.records import rows
from prunekit.records.identity import Identity, difference, run_name, what_matters
from prunekit.records.metrics import Metrics
from prunekit.records.old_names import modern

METRICS = "metrics.json"
JOB = "job.json"
"""A job's identity, and whether it came to its end."""

CONFIG = Path(".hydra") / "config.yaml"
RESULTS = (
    *(METRICS, "layer_selection.json", "bench.json", "study.json", "pruner.yaml", "table.csv", "results.json"),
    "optimization_results.yaml",
)
"""Files of which one at least stands in the folder of a finished run, or sweep, of any task."""

NO_RECORD = "no record of what it is of"


@dataclass(frozen=True)
class Record:
    """The file of a run folder that holds a run's identity, and the file that a finished run leaves beside it."""

    file: str
    result: str
    what: str = "run"

    def continues(self, folder: Path, identity: Identity, *, resume: bool, overwrite: bool, begun: bool = True) -> bool:
        """Whether a run of ``identity`` goes on with what stands in the folder; it starts afresh otherwise.

        Args:
            begun: whether the run that stands there did anything yet: if not, another one may have its folder.

        Raises:
            PrunekitError: for another run that is to be resumed.
            FolderError: for another finished run that would be replaced.
        """
        check_flags(resume, overwrite)
        recorded = None if overwrite else self._read(folder)
        change = NO_RECORD if recorded is None else difference(recorded, json.loads(json.dumps(identity)))
        if resume and recorded is not None:
            if change and begun:
                raise cannot_resume(folder, change, self.what)
            return True
        if change and not overwrite and (folder / self.result).exists():
            raise would_replace(folder, change)
        return False

    def write(self, folder: Path, identity: Identity) -> None:
        """Say what the run is of."""
        write_json(folder / self.file, identity)

    def _read(self, folder: Path) -> Identity | None:
        path = folder / self.file
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise PrunekitError(f"'{path}' cannot be read: {error}; overwrite=true begins anew") from None


RUN = Record("run.json", METRICS)
TRAINING = Record("train.json", "pruner.yaml", "training")


@dataclass
class Job:
    """A job's folder and its identity (``job_identity``)."""

    folder: Path
    identity: Identity

    def finished(self) -> Metrics | None:
        """The metrics of a finished run of the same identity, None if there is no run or it is not finished. A run
        of another ``data.limit`` is not finished: its predictions stand, and others join them. Nor is one with rows in
        error.

        Raises:
            PrunekitError: if the folder holds a run of another configuration.
        """
        record = read_json(self.folder / JOB)
        if not isinstance(record, dict) or "identity" not in record:
            return None
        recorded = modern(record["identity"])
        if (change := difference(_without_limit(recorded), _without_limit(self.identity))) is not None:
            raise cannot_resume(self.folder, change)
        whole = record.get("finished") and recorded == self.identity
        content = read_json(self.folder / METRICS) if whole else None
        if not isinstance(content, dict) or not isinstance(examples := content.get("examples"), int):
            return None
        metrics = cast(Metrics, content)
        if metrics.get("errors"):  # its rows are tried again
            return None
        name = run_name(read_json(self.folder / RUN.file) or {})
        return metrics if sum(row.get("run") == name for row in rows.read(self.folder)) >= examples else None

    def write(self, finished: bool) -> None:
        """Record the identity, before the run begins and when it is finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / JOB, {"identity": self.identity, "finished": finished})


def _without_limit(identity: Identity) -> Identity:
    data = identity.get("data")
    return identity if not isinstance(data, dict) else {**identity, "data": {**data, "limit": None}}


def add_metrics(folder: Path, **entries: object) -> Metrics:
    """Add entries to a finished run's ``metrics.json``; all of them."""
    metrics = cast(Metrics, {**(read_json(folder / METRICS) or {}), **entries})
    write_json(folder / METRICS, metrics)
    return metrics


def check_flags(resume: object, overwrite: object) -> None:
    """Raise unless ``resume`` and ``overwrite`` are yes or no, and not both yes."""
    for name, value in {"resume": resume, "overwrite": overwrite}.items():
        if not isinstance(value, bool):
            raise PrunekitError(f"{name} must be true or false, not {value!r}")
    if resume and overwrite:
        raise PrunekitError("resume=true goes on with a run and overwrite=true replaces it: choose one of them")


def holds_results(folder: Path) -> bool:
    """Whether a finished run stands in the folder, or below it."""
    return any(name in RESULTS for _, _, files in os.walk(folder) for name in files)


def check_resumable(folder: Path, recorded: Identity) -> None:
    """Raise if an evaluation that is to be resumed is of another configuration, but for how many examples it asks."""
    if not recorded["resume"] or recorded["task"] != "eval" or not (folder / rows.FILE).exists():
        return
    with suppress(OSError, yaml.YAMLError, TypeError):
        there = yaml.safe_load((folder / CONFIG).read_text())
        there["data"] = {**there["data"], "limit": recorded["data"]["limit"]}
        if change := difference(what_matters(there, "eval"), what_matters(recorded, "eval")):
            raise cannot_resume(folder, change)


def check_replaceable(folder: Path, recorded: Identity) -> None:
    """Raise FolderError if a run of the configuration ``recorded`` would replace a finished run of another one."""
    if recorded["resume"] or recorded["overwrite"] or not any((folder / name).exists() for name in RESULTS):
        return
    try:
        there = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        raise would_replace(folder, "no record of its configuration") from None
    there, task = there if isinstance(there, dict) else {}, recorded["task"]
    if there.get("task") == task == "report":
        return  # made of finished runs alone, and replaced when it is whole
    change = difference(there.get("task"), task, "task")
    if change := change or difference(what_matters(there, task), what_matters(recorded, task)):
        raise would_replace(folder, change)


def cannot_resume(folder: Path, change: str, what: str = "run") -> PrunekitError:
    """The error of a run that is to go on with another one."""
    return PrunekitError(f"resume: '{folder}' holds a {what} of another configuration ({change})")


def would_replace(folder: Path, change: str) -> FolderError:
    """The error of a run that would replace another one."""
    return FolderError(
        f"'{folder}' holds a finished run of another configuration ({change}): choose another folder, or replace it by "
        "overwrite=true"
    )


def clear_results(folder: Path) -> None:
    """Remove the results of an older run: they must not pass for those of the run that replaces it."""
    for name in (*RESULTS, JOB):
        (folder / name).unlink(missing_ok=True)
