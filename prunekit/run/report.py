"""``task=report``: tables and pictures of finished runs."""

from __future__ import annotations

from typing import Any

from prunekit.errors import check_choice
from prunekit.run.context import Context
from prunekit.run.tracking import MODES, log_report


def run(config: dict[str, Any], context: Context) -> None:
    """``task=report``: tables, plots and one page from the runs of a folder."""
    from prunekit.report.task import print_report, report

    mode = config["logger"]["mode"]
    check_choice("logger.mode", mode, MODES)
    found = report(config["runs"], context.folder, config["report"]["reference"])
    print_report(found, context.folder)
    print(log_report(context.folder, mode, config=config))
