"""What a finished evaluation leaves: the spread of its scores if a table wants it, kept.png, tables on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.pruning.pruner import Pruner
from prunekit.run.config import RunConfig

if TYPE_CHECKING:
    from prunekit.evaluation.batches import Batcher
    from prunekit.evaluation.run import Evaluation
    from prunekit.evaluation.sheets import Sheets


def show(config: RunConfig, evaluation: Evaluation, pruner: Pruner, batcher: Batcher, folder: Path) -> Sheets:
    """Measure, draw and print; ``evaluation.metrics`` are then those on disk. The sheets are for further pictures."""
    from prunekit.evaluation.pictures import draw_kept
    from prunekit.evaluation.sheets import sheets_of
    from prunekit.results.run_table import print_tables
    from prunekit.train.measure import record_spread

    examples, sheets = evaluation.examples, sheets_of(batcher)
    if (count := config.sweep.table.spread) is not None:
        size = config.batch_size
        evaluation.metrics = record_spread(folder, batcher, examples, pruner, count=count, batch_size=size)
    draw_kept(examples, evaluation.rows, sheets, folder / "kept.png")
    print_tables(evaluation.metrics)
    return sheets
