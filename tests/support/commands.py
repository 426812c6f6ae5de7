"""``python -m prunekit`` inside a test's own process, and the arguments of a small run."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from prunekit.records import rows
from prunekit.run import cli


def run_main(monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """``python -m prunekit`` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["prunekit", *arguments])
    GlobalHydra.instance().clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                err.write(stop.code)
    return code, out.getvalue(), err.getvalue()


def arguments(model_folder, run_dir, *more: str) -> list[str]:
    fixed = [f"model.name={model_folder}", f"hydra.run.dir={run_dir}", "logger.mode=disabled", "device=cpu"]
    return ["model=hf", *fixed, "data.limit=14", "data.max_new_tokens=2", *more]


def interrupted_after(count: int, command: Callable[[], tuple[int, str, str]], log: Path) -> None:
    """Run a command in a process of its own, whose ``count``-th row brings SIGINT; what it says goes to ``log``."""
    append, written = rows.append, []

    def interrupting(file: Any, row: dict[str, Any]) -> None:
        append(file, row)
        written.append(row)
        if len(written) == count:
            os.kill(os.getpid(), signal.SIGINT)

    rows.append = interrupting
    code, _, error = command()
    log.write_text(error)
    raise SystemExit(code)
