"""``task=families``: the table of model families."""

from __future__ import annotations

from prunekit.run.config import RunConfig
from prunekit.run.context import Context


def run(config: RunConfig, context: Context) -> None:
    """``task=families``: the table of model families, from the measurements that ship with prunekit."""
    from prunekit.evaluation.families import print_families

    print_families()
