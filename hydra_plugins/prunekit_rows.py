"""``hydra/sweeper=rows``: Hydra's way to a sweep over rows, which ``prunekit.run.rows`` plans.

Hydra takes sweepers from the namespace package ``hydra_plugins`` alone: that is why this file stands here. Every
program that uses Hydra imports it, so it imports prunekit no earlier than it sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class RowSweeper(Sweeper):
    """Rows, each times the product of what else is swept.

    Args:
        max_batch_size: jobs that the launcher gets at a time; None for all.
        params: overrides of every job; ``plan`` reads them from the configuration.
    """

    def __init__(self, max_batch_size: int | None, params: DictConfig | None) -> None:
        self.max_batch_size = max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Plan the jobs, write the plan down, and hand them to the launcher in batches of ``max_batch_size``."""
        from prunekit.run.rows import plan, write_plan

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        jobs = plan(self.config, arguments, self.hydra_context.config_loader)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(folder, jobs)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        size = max(1, self.max_batch_size or len(jobs))
        for start in range(0, len(jobs), size):
            batch = [job.composed_by for job in jobs[start : start + size]]
            self.validate_batch_is_legal(batch)  # composes all once: a wrong word is found before anything runs
            done = self.launcher.launch(batch, initial_job_idx=start)
            for job in done:
                job.return_value  # noqa: B018 (raises what the job raised)
            returns.append(done)
        return returns


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="rows",
    node={"_target_": f"{__name__}.RowSweeper", "max_batch_size": None, "params": None},
    provider="prunekit",
)
