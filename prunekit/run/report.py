"""``task=report``: tables and pictures of finished runs."""

from __future__ import annotations

from prunekit.run.config import ReportConfig
from prunekit.run.context import Context
from prunekit.run.tracking import log_report


def run(config: ReportConfig, context: Context) -> None:
    """``task=report``: tables, plots and one page from the runs of a folder."""
    from prunekit.report.task import print_report, report

    comparison = report(config.report.runs, context.folder, config.report.reference)
    print_report(comparison, context.folder)
    print(log_report(context.folder, config.logger.mode, config=context.recorded))
