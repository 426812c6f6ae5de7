"""``task=study``: the old word for a sweep over rows whose jobs train."""

from __future__ import annotations

from prunekit.errors import PrunekitError
from prunekit.run.config import RunConfig
from prunekit.run.context import Context


def run(config: RunConfig, context: Context) -> None:
    """``task=study``: the old word for a sweep over rows whose jobs train."""
    raise PrunekitError("a study is a sweep over rows: experiment=sparse_finetune, penalties or late_fusion alone")
