"""What a job does, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.records.identity import Identity

TASKS = ("app", "eval", "bench", "calibrate", "families", "layers", "report", "serve", "train", "study")
"""The tasks: each has a module of its name in this package, whose ``run`` takes the configuration and a ``Context``."""


@dataclass(frozen=True)
class Context:
    """A job's folder, the sweep it belongs to, the options chosen in each group, and the
    configuration as it is recorded and told to W&B."""

    folder: Path
    sweep: str | None
    choices: dict[str, str]
    recorded: Identity
