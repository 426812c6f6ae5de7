"""Before a sweep: whether it can run, and whether its jobs have folders of their own."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict

from prunekit import ranks
from prunekit.errors import FolderError, PrunekitError
from prunekit.files import unwritable
from prunekit.records.folder import check_replaceable, holds_results
from prunekit.records.lock import LOCK, check_free
from prunekit.run.words import CONF

if TYPE_CHECKING:
    from prunekit.results.settings import TableSettings


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration without Hydra's own part, as it is written to ``.hydra/config.yaml``."""
    configurations: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in configurations.items() if key != "hydra"}


def check_sweep(config: DictConfig) -> None:
    """What can be said of a sweep before its first job."""
    if ranks.world() > 1:
        raise PrunekitError(f"a sweep: {ranks.world()} processes share one run; give its jobs to a launcher instead")
    settings = table_settings(config)
    if settings.file is not None and (reason := unwritable(Path(settings.file))):
        raise PrunekitError(f"table.file={settings.file} cannot be written: {reason}")
    if config.rows and not str(config.hydra.sweeper._target_).endswith(".RowSweeper"):
        raise PrunekitError("rows are swept by hydra/sweeper=rows alone")
    for word in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        if word.key_or_group != "experiment" or not isinstance(sweep := word.value(), ChoiceSweep):
            continue
        for choice in sweep.list:
            path = CONF / "experiment" / f"{choice}.yaml"
            if path.exists() and "rows" in OmegaConf.load(path):
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
    parts: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    template = str(parts["subdir"])
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


def planned(config: DictConfig) -> list[tuple[str, dict[str, Any]]] | None:
    """The folder of each job of a sweep, below the sweep's, and its configuration; None for a sweeper that decides as
    it goes on."""
    sweeper, loader = config.hydra.sweeper, GlobalHydra.instance().config_loader()
    words, params = list(config.hydra.overrides.task), [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()]
    if sweeper._target_.endswith(".RowSweeper"):
        rows: Any = get_class(sweeper._target_)
        jobs = rows.words(config, params, words, loader)
    elif sweeper._target_.endswith(".BasicSweeper"):
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *words])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    else:
        return None
    configurations = []
    for number, job in enumerate(jobs):
        composed = loader.load_sweep_config(config, list(job))
        with open_dict(composed):
            composed.hydra.job.num = composed.hydra.job.id = number
        HydraConfig.instance().set_config(composed)
        configurations.append((os.path.normpath(str(composed.hydra.sweep.subdir)), plain(composed)))
    return configurations


def table_settings(config: DictConfig) -> TableSettings:
    """``table`` of the configuration, checked."""
    from prunekit.results.settings import TableSettings

    return TableSettings.of(OmegaConf.to_container(config.table, resolve=True))  # type: ignore[arg-type]
