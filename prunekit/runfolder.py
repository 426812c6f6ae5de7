"""The run folder: one writer at a time, and no finished run replaced unless that was asked for.

The lock is the operating system's, so that it goes with the process that holds it; ``.prunekit.writer.json`` beside it
says who that is. What keeps rows of several runs apart in spite of everything is in ``evaluation.rows``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from prunekit import ranks
from prunekit.errors import FolderError, PrunekitError
from prunekit.files import write_whole
from prunekit.jobs import RECORD, difference

LOCK, WRITER = ".prunekit.lock", ".prunekit.writer.json"
CONFIG = Path(".hydra") / "config.yaml"
RESULTS = (
    *("metrics.json", "layer_selection.json", "bench.json", "study.json", "pruner.yaml", "table.csv", "results.json"),
    "optimization_results.yaml",
)
"""Files of which one at least stands in the folder of a finished run, or sweep, of any task."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ANY_TASK = ("resume", "overwrite", "logger", "table", "rows", "objective", "batch_size", "device")
_NOT_FOR = {"eval": ("train", "study", "runs", "report", "bench", "shape")}
_NOT_FOR["layers"] = _NOT_FOR["eval"]

_claimed: dict[str, tuple[int, int]] = {}
"""Folders that are written here, each with the process and thread that claimed it: a forked child has claimed none."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the folder's only writer for the length of the block; inside the block of a claim it costs nothing.

    Of several processes that share a run the first one holds the lock, and all of them learn what came of it.

    Raises:
        FolderError: while another process, or another thread, writes the folder.
    """
    name, owner = os.path.realpath(folder), (os.getpid(), threading.get_ident())
    if _claimed.get(name) == owner:
        yield
        return
    locks: list[FileLock] = []
    ranks.by_first(lambda: locks.extend(_lock(folder, Path(name))))
    _claimed[name] = owner
    try:
        yield
    finally:
        del _claimed[name]
        for lock in locks:
            with suppress(OSError):
                (Path(name) / WRITER).unlink()
            lock.release()


def _lock(folder: Path, place: Path) -> list[FileLock]:
    """The lock of a folder, by its absolute ``place``, held; none, with a warning, where the disk knows no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / LOCK, timeout=0, mode=0o664, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderError(f"'{folder}' is being written by {_writer(place)}; wait, or choose another folder") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"'{folder}' cannot be locked ({error}): see that no other run writes it", stacklevel=4)
        return []
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    write_whole(place / WRITER, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
    return [lock]


def _writer(folder: Path) -> str:
    """Who writes a folder that is locked, and since when."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads((folder / WRITER).read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    return "another process, which has just begun"


def check_free(folder: Path) -> None:
    """Raise FolderError if another process writes the folder now; nothing is created where there is no lock."""
    if (folder / LOCK).exists():
        with claimed(folder):
            pass


def check_flags(config: Mapping[str, Any]) -> None:
    """Raise unless ``resume`` and ``overwrite`` are yes or no, and not both yes."""
    for name in ("resume", "overwrite"):
        if not isinstance(config[name], bool):
            raise PrunekitError(f"{name} must be true or false, not {config[name]!r}")
    if config["resume"] and config["overwrite"]:
        raise PrunekitError("resume=true goes on with a run and overwrite=true replaces it: choose one of them")


def holds_results(folder: Path) -> bool:
    """Whether a finished run stands in the folder, or below it."""
    return any(name in RESULTS for _, _, files in os.walk(folder) for name in files)


def check_resumable(folder: Path, config: dict[str, Any]) -> None:
    """Raise if an evaluation that is to be resumed is of another configuration, but for how many examples it asks."""
    if not config["resume"] or config["task"] != "eval" or not (folder / "predictions.jsonl").exists():
        return
    with suppress(OSError, yaml.YAMLError, TypeError):
        there = yaml.safe_load((folder / CONFIG).read_text())
        there["data"] = {**there["data"], "limit": config["data"]["limit"]}
        if change := difference(_matters(there, "eval"), _matters(config, "eval")):
            raise PrunekitError(f"resume: '{folder}' holds a run of another configuration ({change})")


def check_replaceable(folder: Path, config: dict[str, Any]) -> None:
    """Raise FolderError if starting a run of ``config`` in the folder would replace a finished run of another one."""
    if config["resume"] or config["overwrite"] or not any((folder / name).exists() for name in RESULTS):
        return
    try:
        there = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        raise would_replace(folder, "no record of its configuration") from None
    there = there if isinstance(there, dict) else {}
    if there.get("task") == config["task"] == "report":
        return  # made of finished runs alone, and replaced when it is whole
    change = difference(there.get("task"), config["task"], "task")
    if change := change or difference(_matters(there, config["task"]), _matters(config, config["task"])):
        raise would_replace(folder, change)


def would_replace(folder: Path, change: str) -> FolderError:
    """The error of a run that would replace another one."""
    return FolderError(
        f"'{folder}' holds a finished run of another configuration ({change}): choose another folder, or replace it by "
        "overwrite=true"
    )


def _matters(config: dict[str, Any], task: str) -> dict[str, Any]:
    """The parts of a configuration that change the results of a task."""
    rest = (*_ANY_TASK, *_NOT_FOR.get(task, ()))
    return {key: value for key, value in config.items() if key not in rest}


def clear_results(folder: Path) -> None:
    """Remove the results of an older run: they must not pass for those of the run that replaces it."""
    for name in (*RESULTS, RECORD):
        (folder / name).unlink(missing_ok=True)
