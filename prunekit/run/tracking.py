"""Weights & Biases: the one file that knows it. Local files stay the source of truth."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from PIL import Image

from prunekit.data.example import Prediction
from prunekit.digests import digest
from prunekit.errors import check_choice
from prunekit.records.identity import Identity
from prunekit.records.metrics import Metrics

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

MODES = ("auto", "online", "offline", "disabled")
INIT_TIMEOUT = 15
"""Seconds to wait for the server before a run goes on offline."""

FINISH_TIMEOUT = 60
"""Seconds to wait for what is still to be uploaded; it stays in the run folder in any case."""

SERVICE_WAIT = 300
"""Seconds that W&B's own process may take to start: on a machine under load its usual 30 are too few."""

TAG = 64
"""Characters that W&B allows in a tag."""

PICTURES = 32
"""Examples in the table of a run, each with its picture."""

_unreachable: set[str] = set()
"""Servers that did not answer: the other runs of a sweep in this process do not wait for them again."""

COLUMNS = ("id", "task", "question", "answers", "dense", "pruned", "dense_correct", "correct", "kept", "picture")
PLOTS = ("pareto.png", "layers.png", "overlap.png", "kept.png")


def log_run(
    folder: Path,
    mode: str,
    *,
    config: Identity,
    metrics: Metrics,
    group: str | None,
    tags: list[str],
    examples: Sequence[tuple[Prediction, Image.Image]] = (),
    history: Sequence[dict[str, float]] = (),
    job_type: str = "eval",
) -> str:
    """Log a finished evaluation, and the ``history`` of the training before it (rows with a ``step``); the line to show
    says where it went, and how to sync if it stayed here.

    ``auto`` is online with a credential, else offline; it never asks and never hangs. W&B's files stand in ``folder``.

    Args:
        examples: rows of predictions.jsonl with pictures of what stayed, of which the first ``PICTURES`` are logged.
        history: of the training before it, rows with a ``step``.
    """

    def write(wandb: ModuleType, run: Run) -> None:
        for losses in history:
            run.log({f"train/{key}": value for key, value in losses.items() if key != "step"}, step=int(losses["step"]))
        run.summary.update(_flat(metrics))
        if examples:
            table = wandb.Table(columns=list(COLUMNS))
            for row, picture in examples[:PICTURES]:
                table.add_data(*_cells(row), wandb.Image(picture))
            run.log({"examples": table})
        if (kept := folder / "kept.png").exists():
            run.log({"kept": wandb.Image(str(kept))})

    return _log(folder, mode, job_type, write, config, group=group, tags=[tag[:TAG] for tag in tags])


def log_report(folder: Path, mode: str, *, config: Identity) -> str:
    """Log a report: its table and its plots, the Pareto plot first. Returns the line to show, as ``log_run`` does."""

    def write(wandb: ModuleType, run: Run) -> None:
        with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
            headings, *rows = list(csv.reader(file))
        run.log({"table": wandb.Table(columns=headings, data=rows)})
        run.log({name.split(".")[0]: wandb.Image(str(folder / name)) for name in PLOTS if (folder / name).exists()})

    return _log(folder, mode, "report", write, config, group=None, tags=["report"])


Writer = Callable[[ModuleType, "Run"], None]
"""Logs into a run that was begun."""


def _log(folder: Path, mode: str, job: str, write: Writer, config: Identity, **options: object) -> str:
    check_choice("logger.mode", mode, MODES)
    if mode == "disabled":
        return "W&B: disabled"
    with _environment(folder):
        return _log_quietly(folder, mode, job, write, config, options)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What W&B reads from the environment, where the user has not set it: quiet, patient with its own process, and
    with the pictures of tables in ``folder`` and not in the user's home."""
    data = str(folder.resolve() / "wandb")
    wished = {
        "SILENT": "true",
        "CONSOLE": "off",
        "_SERVICE_WAIT": str(SERVICE_WAIT),
        "DATA_DIR": data,
        "CACHE_DIR": data,
    }
    ours = {f"WANDB_{name}": value for name, value in wished.items() if f"WANDB_{name}" not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _log_quietly(folder: Path, mode: str, job: str, write: Writer, config: Identity, options: dict[str, object]) -> str:
    import wandb

    mode, note = _resolve(wandb, mode)
    if mode == "disabled":
        return "W&B: disabled by WANDB_MODE"
    try:
        run, failed = _start(wandb, folder, mode, job, config, options)
    except Exception as error:  # the run's own files stand: they are what counts
        return f"W&B: nothing logged, it does not start ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
    try:
        # In an offline run's folder: its files, from which it can be synced.
        where, address = (Path(run.dir).parent if run.offline else None), run.url
        try:
            write(wandb, run)
        finally:
            run.finish()
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        return f"W&B: logging stopped, the local files are whole ({type(error).__name__}: {why})"
    if where is None:
        return f"W&B: {address}"
    return f"W&B: offline{failed or note}; to upload: wandb sync {shlex.quote(str(where))}"


def _resolve(wandb: ModuleType, mode: str) -> tuple[str, str]:
    """ "online", "offline" or "disabled", and why if it is not what was asked for."""
    wished = os.environ.get("WANDB_MODE")
    if mode == "auto" and wished in ("offline", "disabled"):
        return wished, ""
    if mode == "offline":
        return mode, ""
    if not _has_credential(wandb):
        return "offline", " (no credential)" if mode == "online" else ""
    if _server() in _unreachable:
        return "offline", " (the server did not answer before)"
    return "online", ""


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "")


def _has_credential(wandb: ModuleType) -> bool:
    """Whether there is a key, without asking for one and without the network."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # no key, a broken netrc, a version that raises: all mean "not online"
        return False


def _start(
    wandb: ModuleType, folder: Path, mode: str, job: str, config: Identity, options: dict[str, object]
) -> tuple[Run, str]:
    """A run in ``mode``; if the server does not answer in time, an offline one and why."""
    options = {"project": "prunekit", "job_type": job, "dir": str(folder), "config": config, **options}
    if not os.environ.get("WANDB_RUN_ID"):  # a sweep's agent names its runs itself
        options |= {"id": run_id(folder, config), "resume": "allow"}
    quiet = {"silent": True, "console": "off"}
    waits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}  # the second is not in every release
    known = {name: seconds for name, seconds in waits.items() if name in wandb.Settings.model_fields}
    try:
        settings = wandb.Settings(**(known if mode == "online" else {}), **quiet)
        return wandb.init(mode=mode, settings=settings, **options), ""
    except Exception as error:  # W&B's process still holds the id of the run that did not start
        reason = ""
        if mode == "online":
            _unreachable.add(_server())
            reason = f" (going online failed: {type(error).__name__})"
        options |= {"id": uuid4().hex[:16], "resume": None}
        return wandb.init(mode="offline", settings=wandb.Settings(**quiet), **options), reason


def run_id(folder: Path, config: Identity) -> str:
    """The same for the same configuration in the same folder, so that a resumed run goes on with its own record."""
    same = {**config, "resume": None, "overwrite": None, "folder": str(folder.resolve())}
    return digest(json.dumps(same, sort_keys=True, default=str))


def _cells(row: Prediction) -> list[Any]:
    answers = " / ".join(row["answers"])
    texts = [row["id"], row["task"], row["question"], answers, row["dense_prediction"], row["prediction"]]
    return [*texts, float(row["dense_correct"]), float(row["correct"]), len(row["kept"])]


def _flat(metrics: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Scalars of nested metrics, with "/" between the levels."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, list) and len(value) == 2:  # an interval
            flat |= {f"{prefix}{key}/low": value[0], f"{prefix}{key}/high": value[1]}
    return flat
