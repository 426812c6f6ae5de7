"""``task=study``: the old word for a sweep over rows whose jobs train."""

from __future__ import annotations

from typing import Any

from prunekit.errors import PrunekitError
from prunekit.run.context import Context


def run(config: dict[str, Any], context: Context) -> None:
    """``task=study``: the old word for a sweep over rows whose jobs train."""
    raise PrunekitError("a study is a sweep over rows: experiment=sparse_finetune, penalties or late_fusion alone")
