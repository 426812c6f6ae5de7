"""Hydra's resolvers of prunekit: unique folders, the groups of ``--help``, lists as sweeps."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def option_groups() -> str:
    """The groups of the configuration and their options, for ``--help``; those that begin with "_" are internal."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    lines = hydra.format_config_groups(lambda name: not name.startswith("hydra")).splitlines()
    split = [line.partition(": ") for line in lines]
    shown = {group: [o for o in options.split(", ") if not o.startswith("_")] for group, _, options in split}
    return "\n".join(f"{group}: {', '.join(options)}" for group, options in shown.items())


def sweep_over(values: Sequence[object]) -> str:
    """A list of the configuration as a sweep of the command line: [0.25, 1.0] is "choice(0.25,1)"."""
    return f"choice({','.join(f'{value:g}' if isinstance(value, float) else str(value) for value in values)})"


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf. Safe to call again."""
    # Part of the default folders' names: runs that start at the same time have folders of their own.
    OmegaConf.register_new_resolver("prunekit_unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("prunekit_groups", option_groups, replace=True)
    OmegaConf.register_new_resolver("prunekit_sweep", sweep_over, replace=True)
