"""One job: Hydra composes its configuration, and its task runs."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from prunekit import ranks
from prunekit.errors import UnknownNameError
from prunekit.records.folder import clear_results
from prunekit.records.lock import claimed
from prunekit.records.sweep import ERROR, reporting
from prunekit.run.config_store import register_options
from prunekit.run.context import TASKS, Context
from prunekit.run.invocation import current
from prunekit.run.messages import kind_of, one_line
from prunekit.run.resolvers import register_resolvers
from prunekit.run.sweeps import plain, rename
from prunekit.run.words import CONF

register_resolvers()  # worker processes import this module and nothing else


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> float | None:
    """One job; what it returns a sweeper may optimise. In a sweep an error is written down and the sweep goes on; alone
    it ends the program."""
    register_options()  # worker processes import this function and nothing else
    folder = Path(ranks.share(HydraConfig.get().runtime.output_dir))
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    words = " ".join(HydraConfig.get().overrides.task)
    ours = False
    try:
        with claimed(folder), reporting(folder, words) if sweeping else nullcontext():
            ours = True
            if config.overwrite and config.task != "report" and ranks.is_first():
                clear_results(folder)
            return dispatch(config, folder)
    except Exception as error:  # Hydra would print lines of its own around it
        if os.environ.get("PRUNEKIT_DEBUG"):
            raise
        if not sweeping:
            current().error = error
            return None
        line = f"{words}: {one_line(error)}{kind_of(error)}"
        if ours:
            (folder / ERROR).write_text(line + "\n")
        print(f"failed: {line}", file=sys.stderr)
        return None


def dispatch(config: DictConfig, folder: Path) -> float | None:
    """Run the configuration's task in ``folder``; what it returns a sweeper may optimise."""
    rename(config)
    if config.task not in TASKS:
        raise UnknownNameError("task", config.task, TASKS)
    hydra_config = HydraConfig.get()
    OmegaConf.resolve(config)
    composed = plain(config)
    context = Context(
        folder=folder,
        sweep="/".join(Path(hydra_config.sweep.dir).parts[-2:]) if hydra_config.mode == RunMode.MULTIRUN else None,
        choices={
            k: v
            for k, v in hydra_config.runtime.choices.items()
            if v and "/" not in k and (k != "train" or config.task == "train")
        },
        recorded=composed,
    )
    from prunekit.run.config import parse  # what a task needs: not before there is one

    task = importlib.import_module(f"prunekit.run.{config.task}")
    return task.run(parse(composed), context)
