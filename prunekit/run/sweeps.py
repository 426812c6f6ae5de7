"""Before a sweep: whether it can run, and whether its jobs have folders of their own."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from prunekit import ranks
from prunekit.errors import FolderError, PrunekitError
from prunekit.files import unwritable
from prunekit.records.folder import check_replaceable, holds_results
from prunekit.records.identity import Identity
from prunekit.records.lock import LOCK, check_free
from prunekit.records.old_names import NEW_NAMES, modern, modern_word
from prunekit.run.rows import params, plan
from prunekit.run.words import CONF, product, read_words

if TYPE_CHECKING:
    from prunekit.results.settings import TableSettings


def plain(config: DictConfig) -> Identity:
    """A configuration without Hydra's own part, as it is written to ``.hydra/config.yaml``."""
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key != "hydra"}


def rename(config: DictConfig) -> None:
    """Put options that an experiment file sets by old names where they stand now; the command line, whose words
    ``split`` renamed before, keeps the last word."""
    if "hydra" in config and (old := config.hydra.sweeper.get("params")):
        params = OmegaConf.to_container(old, resolve=False)
        assert isinstance(params, dict)
        with read_write(config):
            config.hydra.sweeper.params = {modern_word(str(key)): value for key, value in params.items()}
    before = plain(config)
    moved = modern(before)
    if moved == before:
        return
    hydra_config = config.hydra if "hydra" in config else HydraConfig.get()
    with open_dict(config):
        for key in before.keys() | moved.keys():
            if key not in moved:
                del config[key]
            elif moved[key] != before.get(key):
                config[key] = moved[key]
        tops = {name.partition(".")[0] for name in NEW_NAMES.values()}
        for override in read_words(hydra_config.overrides.task):
            if override.key_or_group.partition(".")[0] in tops and not (
                override.is_delete() or override.is_sweep_override()
            ):
                OmegaConf.update(config, override.key_or_group, override.value())


def check_sweep(config: DictConfig) -> None:
    """What can be said of a sweep before its first job."""
    if ranks.world() > 1:
        raise PrunekitError(f"a sweep: {ranks.world()} processes share one run; give its jobs to a launcher instead")
    settings = table_settings(config)
    if settings.file is not None and (reason := unwritable(Path(settings.file))):
        raise PrunekitError(f"sweep.table.file={settings.file} cannot be written: {reason}")
    if config.sweep.rows and not str(config.hydra.sweeper._target_).endswith(".RowSweeper"):
        raise PrunekitError("sweep.rows are swept by hydra/sweeper=rows alone")
    for word in read_words(config.hydra.overrides.task):
        if word.key_or_group != "experiment" or not isinstance(sweep := word.value(), ChoiceSweep):
            continue
        for choice in sweep.list:
            path = CONF / "experiment" / f"{choice}.yaml"
            if path.exists() and OmegaConf.select(OmegaConf.load(path), "sweep.rows"):
                raise PrunekitError(f"experiment={choice} is a sweep of its own: run it by itself")


def check_jobs(config: DictConfig, sweep: Path) -> None:
    """What can be said of a sweep's folders before its first job.

    Raises:
        FolderError: if jobs share a folder, another process writes in one, or one holds a finished run that would be
            replaced.
    """
    for lock in sweep.rglob(LOCK):
        check_free(lock.parent)
    kept = config.resume or config.overwrite or not holds_results(sweep)
    template = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]
    if kept and re.search(r"hydra[.:]job\.(num|id)", template):
        return
    if (jobs := planned(config)) is None:
        if not kept:
            raise FolderError(f"'{sweep}' holds finished runs: resume=true goes on, overwrite=true begins anew")
        raise FolderError(
            f"hydra.sweep.subdir={template}: this sweeper's jobs may share it; put ${{hydra.job.num}} in it"
        )
    shared = [folder for folder, count in Counter(folder for folder, _ in jobs).items() if count > 1]
    if shared:
        number = sum(folder == shared[0] for folder, _ in jobs)
        raise FolderError(
            f"hydra.sweep.subdir={template} does not tell the jobs apart: {number} of {len(jobs)} would write "
            f"'{sweep / shared[0]}'; put ${{hydra.job.num}} or what is swept in it"
        )
    for folder, job in jobs:
        check_replaceable(sweep / folder, job)


def planned(config: DictConfig) -> list[tuple[str, Identity]] | None:
    """The folder of each job of a sweep, below the sweep's, and its configuration; None for a sweeper that decides as
    it goes on."""
    sweeper, loader = str(config.hydra.sweeper._target_), GlobalHydra.instance().config_loader()
    words = list(config.hydra.overrides.task)
    if sweeper.endswith(".RowSweeper"):
        jobs = [job.composed_by for job in plan(config, words, loader)]
    elif sweeper.endswith(".BasicSweeper"):
        swept = product(read_words([*params(config), *words], loader))
        jobs = [[f"{key}={value}" for key, value in job.items()] for job in swept]
    else:
        return None
    configurations = []
    for number, job in enumerate(jobs):
        composed = loader.load_sweep_config(config, job)
        rename(composed)
        with open_dict(composed):
            composed.hydra.job.num = composed.hydra.job.id = number
        HydraConfig.instance().set_config(composed)
        configurations.append((os.path.normpath(str(composed.hydra.sweep.subdir)), plain(composed)))
    return configurations


def table_settings(config: DictConfig) -> TableSettings:
    """``sweep.table`` of the configuration, checked."""
    from prunekit.results.settings import TableSettings

    table = OmegaConf.to_container(config.sweep.table, resolve=True)
    assert isinstance(table, dict)
    return TableSettings(
        **{str(key): value for key, value in table.items()}, narrowed=bool(config.sweep.only or config.sweep.skip)
    )
