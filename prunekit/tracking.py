"""Weights & Biases: the one file that knows it. Local files stay the source of truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunekit.errors import check_choice

MODES = ("auto", "online", "offline", "disabled")
INIT_TIMEOUT = 20
"""Seconds to wait for the server before a run goes on offline."""


def log_run(
    folder: Path,
    mode: str,
    *,
    config: dict[str, Any],
    metrics: dict[str, Any],
    group: str | None,
    tags: list[str],
    history: Sequence[dict[str, float]] = (),
    job_type: str = "eval",
) -> str:
    """Log a finished evaluation, and the ``history`` of the training before it (rows with a ``step``); the line to show
    says where it went, and how to sync if it stayed here.

    ``auto`` is online with a credential, else offline; it never asks and never hangs. W&B's files stand in ``folder``.
    """
    check_choice("logger.mode", mode, MODES)
    if mode == "disabled":
        return "W&B: disabled"
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    import wandb

    if mode == "auto":
        wished = os.environ.get("WANDB_MODE")
        mode = wished if wished in ("offline", "disabled") else "online" if _has_credential(wandb) else "offline"
    run, note = _start(wandb, folder, mode, config, group, tags, job_type)
    try:
        for row in history:
            run.log({f"train/{key}": value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        run.summary.update(_flat(metrics))
        kept = folder / "kept.png"
        if kept.exists():
            run.log({"kept": wandb.Image(str(kept))})
        where = Path(run.dir).parent if run.offline else None
    finally:
        run.finish()
    if where is None:
        return f"W&B: {run.url}"
    return f"W&B: offline{note}; to upload: wandb sync {where}"


def _has_credential(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # no key, a broken netrc, a version that raises: all mean "not online"
        return False


def _start(
    wandb: Any, folder: Path, mode: str, config: dict[str, Any], group: str | None, tags: list[str], job_type: str
) -> tuple[Any, str]:
    """A run in ``mode``; if the server does not answer in time, an offline one and why."""
    options: dict[str, Any] = dict(
        project="prunekit", job_type=job_type, dir=str(folder), config=config, group=group, tags=tags
    )
    try:
        settings = wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off")
        return wandb.init(mode=mode, settings=settings, **options), ""
    except Exception as error:
        if mode == "offline":
            raise
        reason = f" (going online failed: {type(error).__name__})"
        settings = wandb.Settings(silent=True, console="off")
        return wandb.init(mode="offline", settings=settings, **options), reason


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
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
