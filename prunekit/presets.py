"""Published methods as named compositions: one YAML file each, read by Python and by the command line alike.

A file ``methods/NAME.yaml`` holds what differs from the defaults: components (a name, or a mapping of ``name`` and
options), ``keep_ratio`` and ``positions``. ``./methods`` and ``PRUNEKIT_METHODS`` are read as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.pruner import Pruner
from prunekit.registry import KINDS, method_folders
from prunekit.saving import build


def methods() -> dict[str, Path]:
    """Files of all named methods; a name in two folders is an error."""
    found: dict[str, Path] = {}
    for folder in method_folders():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in found:
                raise PrunekitError(f"method '{path.stem}' is defined twice: {found[path.stem]} and {path}")
            found[path.stem] = path
    return found


def preset(name: str) -> dict[str, Any]:
    """The composition ``name``: components as mappings with a ``name``, ``keep_ratio`` and ``positions`` if set."""
    files = methods()
    if name not in files:
        raise UnknownNameError("method", name, files)
    try:
        data = yaml.safe_load(files[name].read_text()) or {}
    except yaml.YAMLError as error:
        raise PrunekitError(f"method '{name}': {files[name]} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise PrunekitError(f"method '{name}': {files[name]} must hold a mapping")
    return {k: {"name": v} if k in KINDS and isinstance(v, str) else v for k, v in data.items()}


def method(name: str, **overrides: Any) -> Pruner:
    """The published method ``name`` as a pruner; ``overrides`` replace entries (a component goes with its options)."""
    data: dict[str, Any] = preset(name)
    given = {k: v for k, v in overrides.items() if v is not None}
    if "keep_tokens" in given:
        data.pop("keep_ratio", None)
    unknown = set(given) - {*KINDS, "keep_ratio", "keep_tokens", "positions"}
    if unknown:
        raise UnknownNameError(
            "option of method:", sorted(unknown)[0], (*KINDS, "keep_ratio", "keep_tokens", "positions")
        )
    return build({**data, **given, "name": name}, f"method '{name}'")
