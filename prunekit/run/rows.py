"""The jobs of a sweep over rows: named lists of overrides, each times the product of what else is swept.

A paper's table is no product of options: its rows are configurations of their own. ``sweep.rows`` holds them,
``{random: [method=random, "seed=0,1,2"], ivtp: [method=ivtp]}``; ``hydra/sweeper=rows`` runs them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from prunekit.errors import PrunekitError, check_choice
from prunekit.files import write_json
from prunekit.records.old_names import modern_word
from prunekit.records.sweep import PLAN
from prunekit.run.words import product, read_words


@dataclass(frozen=True)
class Planned:
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

    @property
    def composed_by(self) -> list[str]:
        """The words that Hydra composes the job by."""
        return [*self.words, f"hydra.sweep.subdir={self.folder}"]


def plan(config: DictConfig, words: Sequence[str], loader: ConfigLoader) -> list[Planned]:
    """The jobs of ``sweep.rows``: of those rows that ``sweep.only`` names, all if it is null, without those of
    ``sweep.skip``. The ``words`` of the command line come after what a row says, and so have the last word; a row comes
    after the sweeper's ``params``."""
    rows = config.sweep.rows
    if OmegaConf.is_dict(rows):
        rows = OmegaConf.to_container(rows, resolve=True)
    if not isinstance(rows, dict) or not rows:
        raise PrunekitError("hydra/sweeper=rows needs sweep.rows={NAME: [override, ...], ...}")
    labels, jobs = config.sweep.table.labels or {}, []
    for name, row in rows.items():
        if row is None:  # taken out by sweep.rows.NAME=null
            continue
        if not isinstance(row, list):
            raise PrunekitError(f"sweep.rows.{name!s} must be a list of overrides, not {row!r}")
        jobs += expand(str(name), read_words([*params(config), *row, *words], loader), labels.get(name))
    if twice := [folder for folder, count in Counter(job.folder for job in jobs).items() if count > 1]:
        raise PrunekitError(f"sweep.rows: two jobs share the folder '{twice[0]}'")
    names = list(dict.fromkeys(job.row for job in jobs))
    only, skip = named("sweep.only", config.sweep.only, names), named("sweep.skip", config.sweep.skip, names)
    return [job for job in jobs if job.row in (only or names) and job.row not in skip]


def params(config: DictConfig) -> list[str]:
    """What a sweeper adds to all jobs, as words."""
    settings: dict[str, object] = config.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in settings.items()]


def named(option: str, value: str | Iterable[str] | None, rows: Sequence[str]) -> list[str]:
    """The names of rows that an option lists; it may be one name alone."""
    if not (value is None or isinstance(value, str) or OmegaConf.is_list(value)):
        raise PrunekitError(f"{option} must be a list of rows, not {value!r}")
    names = [value] if isinstance(value, str) else list(value or ())
    for name in names:
        check_choice(option, name, rows)
    return names


def expand(name: str, overrides: Sequence[Override], label: str | None = None) -> list[Planned]:
    """The jobs of one row: the product of its sweeps. ``{key}`` in its name and label stands for that key's value."""
    last = {override.get_key_element(): override for override in overrides}  # of two for a key the later counts
    swept = [key for key, override in last.items() if override.is_sweep_override()]
    jobs = []
    for job in product(last.values()):
        row, title = filled(name, job), filled(label or name, job)
        values = {key: job[key] for key in swept if f"{{{key}}}" not in name}
        parts = [row, *(f"{key}_{value}" for key, value in values.items())]
        folder = "/".join(re.sub(r"_*[^\w.-]+_*", "_", part).strip("._") or "_" for part in parts)
        jobs.append(Planned(row, title, values, [f"{key}={value}" for key, value in job.items()], folder))
    return jobs


def filled(text: str, job: Mapping[str, str]) -> str:
    """A text with a job's values in place of ``{key}``."""
    return re.sub(r"\{([\w.]+)\}", lambda match: job.get(modern_word(match[1]), match[0]), text)


def write_plan(folder: Path, jobs: Sequence[Planned]) -> None:
    """The jobs as planned, for whoever reads the sweep's folder."""
    listed = [
        {"folder": j.folder, "row": j.row, "label": j.label, "values": j.values, "overrides": j.words} for j in jobs
    ]
    write_json(folder / PLAN, {"schema": 1, "jobs": listed})
