"""Published methods as named compositions: one YAML file each, read by Python and by the command line alike.

A file ``methods/NAME.yaml`` holds what differs from the defaults: components (a name, or a mapping of ``name`` and
options), one of ``keep_ratio``, ``keep_tokens`` and ``budget``, and ``positions``.
``./methods`` and ``PRUNEKIT_METHODS`` are read as well.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.pruner import Pruner
from prunekit.registry import KINDS, check_options, method_folders, registry
from prunekit.saving import build

BUDGET = ("keep_ratio", "keep_tokens", "budget")
ENTRIES = (*KINDS, *BUDGET, "positions")


def methods() -> dict[str, Path]:
    """Files of all named methods; a name in two folders is an error, a broken file is named and left out."""
    found: dict[str, Path] = {}
    for folder in method_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in found:
                raise PrunekitError(f"method '{path.stem}' is defined twice: {found[path.stem]} and {path}")
            try:
                read_preset(path)
            except PrunekitError as error:
                warnings.warn(f"skipped {path}: {error}", stacklevel=2)
            else:
                found[path.stem] = path
    return found


def read_preset(path: Path) -> dict[str, Any]:
    """The composition of a file: components as mappings with a ``name``, and whatever else it sets; checked."""
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PrunekitError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise PrunekitError("it must hold a mapping")
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
    """The composition called ``name``."""
    files = methods()
    if name not in files:
        raise UnknownNameError("method", name, files)
    return read_preset(files[name])


def with_preset(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A preset's entries overridden by ``given`` ones that are not None; a given budget replaces the preset's."""
    given = {key: value for key, value in given.items() if value is not None}
    if any(key in given for key in BUDGET):
        data = {key: value for key, value in data.items() if key not in BUDGET}
    return {**data, **given}


def method(name: str, **overrides: Any) -> Pruner:
    """The published method ``name`` as a pruner; ``overrides`` replace entries (a component goes with its options)."""
    data = preset(name)
    for key in overrides:
        if key not in ENTRIES:
            raise UnknownNameError("option of method:", key, ENTRIES)
    return build({**with_preset(data, overrides), "name": name}, f"method '{name}'")
