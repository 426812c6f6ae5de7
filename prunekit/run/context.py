"""Where a job runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunekit.records.identity import Identity


@dataclass(frozen=True)
class Context:
    """A job's folder, the sweep it belongs to, the options chosen in each group, and the
    configuration as it is recorded and told to W&B."""

    folder: Path
    sweep: str | None
    choices: dict[str, str]
    recorded: Identity
