"""A sweep over rows: named lists of overrides, each times the product of what else is swept.

A paper's table is no product of options: its rows are configurations of their own. ``rows`` of the configuration holds
them, ``{random: [method=random, "seed=0,1,2"], ivtp: [method=ivtp]}``, and ``hydra/sweeper=rows`` runs them. Hydra
takes sweepers from the namespace package ``hydra_plugins`` alone: that is why this file stands here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf


class Planned(NamedTuple):  # no dataclass: Hydra runs this file before Python knows it as a module, which those need
    """One job of a sweep over rows.

    Attributes:
        row: its row's name.
        label: the row's name in a table.
        values: what varies within the row, by key.
        words: all overrides.
        folder: the job's own, below the sweep's.
    """

    row: str
    label: str
    values: dict[str, str]
    words: list[str]
    folder: str


class RowSweeper(BasicSweeper):
    """Hydra's own sweeper, with rows. What the command line says comes after what a row says, and so has the last word;
    a row comes after the sweeper's ``params``."""

    @staticmethod
    def words(config: DictConfig, params: list[str], arguments: list[str], loader: ConfigLoader) -> list[list[str]]:
        """The overrides of each job, its folder's among them."""
        return [_words(job) for job in plan(config, params, arguments, loader)]

    def sweep(self, arguments: list[str]) -> Any:
        """Plan the jobs, write the plan down, and hand them to the launcher in batches of ``max_batch_size``."""
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        jobs = plan(self.config, self._parse_config(), arguments, self.hydra_context.config_loader)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(folder, jobs)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        words = [_words(job) for job in jobs]
        returns: list[Any] = []
        for batch in self.split_overrides_to_chunks(words, self.max_batch_size):
            self.validate_batch_is_legal(batch)  # composes all once: a wrong word is found before anything runs
            done = self.launcher.launch(batch, initial_job_idx=sum(map(len, returns)))
            for job in done:
                job.return_value  # noqa: B018 (raises what the job raised)
            returns.append(done)
        return returns


def _words(job: Planned) -> list[str]:
    return [*job.words, f"hydra.sweep.subdir={job.folder}"]


def plan(config: DictConfig, params: list[str], arguments: list[str], loader: ConfigLoader) -> list[Planned]:
    """The jobs of a configuration's ``rows``: those that ``table.rows`` names if it names any, without those of
    ``study.skip``."""
    labels: Any = OmegaConf.select(config, "table.labels") or {}
    rows: Any = OmegaConf.to_container(config.rows, resolve=True) if config.get("rows") else None
    if not isinstance(rows, dict):
        raise HydraException("hydra/sweeper=rows needs rows={NAME: [override, ...], ...}")
    parser, jobs = OverridesParser.create(config_loader=loader), []
    arguments = [word for word in arguments if word != "task=study"]  # the old word for rows whose jobs train
    for name, words in rows.items():
        if words is None:  # a row that was taken out by rows.NAME=null
            continue
        if not isinstance(words, list):
            raise HydraException(f"rows.{name} must be a list of overrides, not {words!r}")
        overrides = parser.parse_overrides([*params, *map(str, words), *arguments])
        jobs += expand(str(name), overrides, labels.get(name))
    if twice := [folder for folder, count in Counter(job.folder for job in jobs).items() if count > 1]:
        raise HydraException(f"rows: two jobs share the folder '{twice[0]}'")
    return chosen(jobs, OmegaConf.select(config, "table.rows"), OmegaConf.select(config, "study.skip"))


def chosen(jobs: list[Planned], wanted: Any, skipped: Any) -> list[Planned]:
    """The jobs of the rows that are wanted (None: all) and not skipped; the first row of a study stays."""
    from prunekit.errors import check_choice

    rows = list(dict.fromkeys(job.row for job in jobs))
    names = rows if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        check_choice("row", name, rows)
    for name in skipped or ():
        check_choice("study.skip", name, rows[1:])
    return [job for job in jobs if job.row in names and job.row not in (skipped or ())]


def expand(name: str, overrides: Sequence[Override], label: str | None = None) -> list[Planned]:
    """The jobs of one row: the product of its sweeps. Of two overrides of a key the later counts. ``{key}`` in the
    row's name and label stands for the value of that key."""
    merged = {override.get_key_element(): override for override in overrides}
    swept = [key for key, override in merged.items() if override.is_sweep_override()]
    (products,) = BasicSweeper.split_arguments(list(merged.values()), None)
    jobs = []
    for words in products:
        assigned = {key: word.partition("=")[2] for key, word in zip(merged, words, strict=True)}
        row, title = name, label or name
        for key, value in assigned.items():
            row, title = (text.replace(f"{{{key}}}", value) for text in (row, title))
        values = {key: assigned[key] for key in swept if f"{{{key}}}" not in name}
        parts = [row, *(f"{key}_{value}" for key, value in values.items())]
        folder = "/".join(re.sub(r"_*[^\w.-]+_*", "_", part).strip("._") or "_" for part in parts)
        jobs.append(Planned(row, title, values, words, folder))
    return jobs


def write_plan(folder: Path, jobs: Sequence[Planned]) -> None:
    """The jobs as planned, for whoever reads the sweep's folder."""
    from prunekit.files import write_json
    from prunekit.records.sweep import PLAN  # not at the top: Hydra imports this file in every program that uses it

    listed = [
        {"folder": j.folder, "row": j.row, "label": j.label, "values": j.values, "overrides": j.words} for j in jobs
    ]
    write_json(folder / PLAN, {"schema": 1, "jobs": listed})


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="rows",
    node={"_target_": f"{__name__}.RowSweeper", "max_batch_size": None, "params": None},
    provider="prunekit",
)
