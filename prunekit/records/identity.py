"""The identity of a run: plain data that is equal for two runs exactly if one may be continued as the other.

A job's identity is its configuration (``job.json``), known before anything is loaded; an evaluation's and a training's
(``run.json``, ``train.json``) are made of the loaded model and pruner, by those who run them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prunekit.digests import digest
from prunekit.models import file_digest, source_digest
from prunekit.records.old_names import modern
from prunekit.registry import METHOD_MODULES

Identity = dict[str, Any]

NOT_OF_A_RUN = {"resume", "overwrite", "logger", "sweep", "study", "batch_size", "device"}
"""Parts of a configuration that change the results of no task."""

OF_ONE_TASK = {"eval", "train", "report", "bench", "calibrate"}
"""Parts that change the results of the task of their name alone."""

MODEL = "another model, or other weights or dtype of it"
SHOWN = 3
"""Differences that are shown one by one."""


def what_matters(recorded: Identity, task: str) -> Identity:
    """The parts of a configuration that change the results of a task. One that was recorded under old names of options
    matters as the same one under new names does."""
    left_out = NOT_OF_A_RUN | OF_ONE_TASK - {task}
    return {key: value for key, value in modern(recorded).items() if key not in left_out}


def job_identity(recorded: Identity, components: Iterable[object] = ()) -> Identity:
    """The identity of an evaluation by its configuration: with the content of a model's files (a hub's model is known
    by name and revision), of the method files that ``components`` come from, and of their weights. A file that was
    edited makes another run. Nothing is loaded for it."""
    matters = what_matters(recorded, "eval")
    matters["model"] = {**matters["model"], "content": source_digest(str(recorded["model"]["name"]))}
    if (adapter := matters["model"].get("adapter")) is not None:
        from prunekit.adapters import weights_digest

        matters["model"]["adapter_content"] = weights_digest(adapter)
    rows = Path(str(matters.get("data", {}).get("path") or "."))
    if rows.is_file():
        matters["data"] = {**matters["data"], "content": file_digest(rows)}
    parts = list(components)
    modules = {type(part).__module__ for part in parts}
    files = [Path(str(sys.modules[name].__file__)) for name in modules if name.startswith(METHOD_MODULES)]
    files += [
        Path(path) for part in parts if isinstance(path := getattr(part, "weights", None), str) and Path(path).is_file()
    ]
    matters["files"] = {file.name: digest(file.read_bytes()) for file in sorted(files)}
    return json.loads(json.dumps(matters, default=str))


def run_name(identity: Identity) -> str:
    """The name that a run's rows bear: the digest of its identity."""
    return digest(json.dumps(identity, sort_keys=True))


def difference(there: object, here: object, name: str = "") -> str | None:
    """Where two identities differ, in words; None if they are equal. A model's digest says nothing to a reader, so it
    is named only where nothing else differs."""
    differing = list(_differences(there, here, name))
    words = [line for line in differing if line != MODEL] or differing
    if len(words) > SHOWN + 1:
        words[SHOWN:] = [f"and {len(words) - SHOWN} more"]
    return ", ".join(words) or None


def _differences(there: object, here: object, name: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield MODEL if name == "model" else f"{name}: {there} there, {here} here"
