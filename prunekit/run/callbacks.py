"""What happens before and after a run or a sweep: Hydra's callbacks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from prunekit import ranks
from prunekit.records.folder import check_flags, check_replaceable, check_resumable
from prunekit.records.lock import claimed
from prunekit.records.sweep import failure, outcomes
from prunekit.run.invocation import current
from prunekit.run.messages import ending
from prunekit.run.sweeps import check_jobs, check_sweep, plain, rename, table_settings


class SweepSummary(Callback):
    """Before a run or a sweep: whether its folders may be written. After a sweep: which jobs failed, and the table of a
    sweep over rows. Jobs leave files, so that this holds for launchers with processes as well."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Before Hydra writes anything to the run folder: it must be free, and nothing finished be lost in it."""
        with ending():
            HydraConfig.instance().set_config(config)
            rename(config)
            folder = Path(ranks.share(os.path.abspath(config.hydra.run.dir)))
            current().place["hydra.run.dir"] = str(folder)
            check_flags(config.resume, config.overwrite)
            if config.task == "report":
                from prunekit.report.task import check_folder

                check_folder(folder)
            current().claims.enter_context(claimed(folder))
            ranks.by_first(lambda: check_resumable(folder, plain(config)))
            ranks.by_first(lambda: check_replaceable(folder, plain(config)))

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        self.start = time.time()
        with ending():
            rename(config)
            check_sweep(config)
            folder = Path(config.hydra.sweep.dir)
            check_flags(config.resume, config.overwrite)
            current().place["hydra.sweep.dir"] = str(folder)
            current().claims.enter_context(claimed(folder))
            check_jobs(config, folder)
        current().sum_up = lambda: self.on_multirun_end(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        current().sum_up = None
        folder = Path(config.hydra.sweep.dir)
        errors = self.errors(folder, planned=bool(config.sweep.rows))
        failed = {name: error for name, error in errors.items() if error is not None}
        print(f"{len(errors) - len(failed)} of {len(errors)} jobs finished: {folder}")
        for name in sorted(failed, key=lambda name: (len(name), name)):
            current().failed_jobs.append(name)
            print(f"failed: job {name}: {failed[name]}", file=sys.stderr)
        if config.sweep.rows and config.sweep.table.name is not None:
            _write_table(config, folder)

    def errors(self, folder: Path, planned: bool) -> dict[str, str | None]:
        """Why each job has no result, by its folder's name; None for one that has. Jobs are those of the plan, or those
        that wrote their configuration just now, for a folder that was swept before holds older ones too."""
        if planned:
            return {str(o.folder.relative_to(folder)): o.error for o in outcomes(folder)}
        written = [p for p in folder.rglob(".hydra/hydra.yaml") if p.stat().st_mtime >= self.start - 1]
        return {str(p.parent.parent.relative_to(folder)): failure(p.parent.parent) for p in written}


def _write_table(config: DictConfig, folder: Path) -> None:
    """Write the table of a sweep over rows. An error is stored and raised later: Hydra swallows those of callbacks."""
    from prunekit.results.sweep import write_results

    try:
        print(f"files: {', '.join(write_results(folder, table_settings(config)))}")
    except Exception as error:
        current().error = error
