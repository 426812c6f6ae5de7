"""Published methods as named compositions: one file each, read by Python and by the command line alike.

A file ``methods/NAME.yaml``, or a call of ``prunekit.compose`` in a ``methods/*.py`` beside the components it needs,
holds what differs from the defaults: components (a name, or a mapping of ``name`` and options), one of ``keep_ratio``,
``keep_tokens`` and ``budget``, and ``positions``. ``./methods`` and ``PRUNEKIT_METHODS`` are read as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.files import read_yaml
from prunekit.pruning.pruner import Pruner
from prunekit.registry import KINDS, check_options, method_folders, option_names, registry

BUDGET = ("keep_ratio", "keep_tokens", "budget")
ENTRIES = (*KINDS, *BUDGET, "positions")
IN_PYTHON = Path("<python>")
"""Stands for the file of a composition that was named by running code."""


def methods() -> dict[str, Path]:
    """Files of all named methods; a name in two folders is an error, a broken file is named and left out."""
    return {name: path for name, (path, _) in presets().items()}


def presets() -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and checked composition of all named methods.

    Raises:
        PrunekitError: for a name that is defined twice.
    """
    composed = registry.compositions()
    sources: list[tuple[str, Path, dict[str, Any] | None]] = [
        (name, path or IN_PYTHON, entries) for name, (entries, path) in composed.items()
    ]
    for folder in method_folders():
        sources += [(path.stem, path, None) for path in sorted(folder.glob("*.yaml"))]
    entries_by_name: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, path, entries in sources:
        if name in entries_by_name:
            raise PrunekitError(f"method '{name}' is defined twice: {entries_by_name[name][0]} and {path}")
        try:
            entries_by_name[name] = path, read_preset(path) if entries is None else check_preset(entries)
        except PrunekitError as error:
            warnings.warn(f"skipped {path}: {error}", stacklevel=3)
    return dict(sorted(entries_by_name.items()))


def read_preset(path: Path) -> dict[str, Any]:
    """The composition of a file, checked."""
    return check_preset(read_yaml(path))


def check_preset(data: dict[str, Any]) -> dict[str, Any]:
    """A composition with its components as mappings with a ``name``; raises for what is unknown or does not fit."""
    for key, value in data.items():
        if key not in ENTRIES:
            raise UnknownNameError("entry", key, ENTRIES)
        if key in KINDS:
            part = {"name": value} if isinstance(value, str) else value
            if not isinstance(part, dict) or not isinstance(part.get("name"), str):
                raise PrunekitError(f"{key} must be a name, or a mapping with one")
            options = {k: v for k, v in part.items() if k != "name"}
            check_options(key, part["name"], registry.get(key, part["name"]), options)
            data[key] = part
    return data


def preset(name: str) -> dict[str, Any]:
    """The composition called ``name``.

    Raises:
        PrunekitError: for a name that there is not (``UnknownNameError``).
    """
    entries_by_name = presets()
    if name not in entries_by_name:
        raise UnknownNameError("method", name, entries_by_name)
    return entries_by_name[name][1]


def with_preset(data: Mapping[str, object], options: Mapping[str, object]) -> dict[str, Any]:
    """A preset's entries overridden by the ``options`` that are not None; a given budget replaces the preset's."""
    options = {key: value for key, value in options.items() if value is not None}
    if any(key in options for key in BUDGET):
        data = {key: value for key, value in data.items() if key not in BUDGET}
    return {**data, **options}


def with_variant(parts: dict[str, Any], variant: str | None) -> dict[str, Any]:
    """Components, each a mapping of ``name`` and options, in the ``variant`` (paper, code) of those that have any.

    Raises:
        PrunekitError: where no component has variants.
    """
    if variant is None:
        return parts
    kinds = [kind for kind in parts if kind in KINDS and "name" in parts[kind]]
    having = [kind for kind in kinds if "variant" in option_names(registry.get(kind, parts[kind]["name"]))]
    if not having:
        raise PrunekitError(f"variant={variant}: no component here has variants")
    return {**parts, **{kind: {**parts[kind], "variant": variant} for kind in having}}


def method(name: str, *, variant: str | None = None, **overrides: object) -> Pruner:
    """The published method ``name`` as a pruner; ``overrides`` replace entries (a component goes with its options).

    Args:
        variant: "paper" or "code", where the two differ and the method offers both.

    Raises:
        PrunekitError: for a name or an option that there is not.
    """
    data = preset(name)
    for key in overrides:
        if key not in ENTRIES:
            raise UnknownNameError("option of method:", key, (*ENTRIES, "variant"))
    data = with_preset(with_variant(data, variant), overrides)
    return Pruner.from_dict({**data, "name": name}, f"method '{name}'")
