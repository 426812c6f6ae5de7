"""Hydra's resolvers of prunekit: unique folders, the text of ``--help``, lists as sweeps."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf


def sweep_over(values: Sequence[object]) -> str:
    """A list of the configuration as a sweep of the command line: [0.25, 1.0] is "choice(0.25,1)"."""
    return f"choice({','.join(f'{value:g}' if isinstance(value, float) else str(value) for value in values)})"


def published_rows(target: str) -> DictConfig:
    """The rows of a sweep over the cells of a published table."""
    from prunekit.results.published import rows_of

    return OmegaConf.create(rows_of(target))


def groups_for_help() -> str:
    """The options of every group, for ``--help``."""
    from prunekit.run.help import option_groups

    return option_groups()


def options_for_help(_root_: DictConfig) -> str:
    """All options of the composed configuration, for ``--help``; ``_root_`` is OmegaConf's own name for it."""
    from prunekit.run.help import option_lines

    return option_lines(_root_)


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf. Safe to call again."""
    # Part of the default folders' names: runs that start at the same time have folders of their own.
    OmegaConf.register_new_resolver("prunekit_unique", lambda: secrets.token_hex(4), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("prunekit_groups", groups_for_help, replace=True)
    OmegaConf.register_new_resolver("prunekit_options", options_for_help, replace=True)
    OmegaConf.register_new_resolver("prunekit_sweep", sweep_over, replace=True)
    OmegaConf.register_new_resolver("prunekit_published", published_rows, replace=True)
