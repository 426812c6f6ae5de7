"""Where a job runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Context:
    """A job's folder, the sweep it belongs to, and the options chosen in each group."""

    folder: Path
    sweep: str | None
    choices: dict[str, str]
