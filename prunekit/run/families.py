"""``task=families``: the table of model families."""

from __future__ import annotations

from typing import Any

from prunekit.run.context import Context


def run(config: dict[str, Any], context: Context) -> None:
    """``task=families``: the table of model families, from the measurements that ship with prunekit."""
    from prunekit.evaluation.families import print_families

    print_families()
