"""prunekit as a model of lmms-eval: ``--model prunekit --model_args pretrained=...,method=fastv,keep_ratio=0.5``.

lmms-eval finds ``manifest`` by the entry point ``lmms_eval.models`` and imports ``prunekit.lmms_model`` when asked for;
nothing else in prunekit knows lmms-eval. Here is what needs none of it: which of the ``model_args`` make the pruner.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.pruning.presets import ENTRIES, check_preset, method, preset, with_variant
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import DEFAULTS
from prunekit.registry import KINDS

OWN = ("method", "variant", "pruner", *ENTRIES)
"""``model_args`` that describe the pruner; ``schedule.layer=3`` sets an option of a component."""


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="prunekit", chat_class_path="prunekit.lmms_model.Prunekit")


def split(arguments: Mapping[str, object], others: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pruner's arguments, and those of the model, which must be among ``others``."""
    known = tuple(name for name in others if name not in ("self", "kwargs"))
    own, rest = {}, {}
    for key, value in arguments.items():
        if key.partition(".")[0] in OWN:
            own[key] = _plain(value)
        elif key in known:
            rest[key] = value
        else:
            raise UnknownNameError("model_args:", key, (*OWN, *known))
    return own, rest


def pruner_of(arguments: Mapping[str, object]) -> Pruner:
    """The pruner that ``model_args`` describe: ``pruner=FOLDER`` (as saved), a ``method``, or components by name.

    Raises:
        PrunekitError: for unknown names, and for ``pruner`` beside anything else.
    """
    options: dict[str, Any] = dict(arguments)
    if (folder := options.pop("pruner", None)) is not None:
        if options:
            raise PrunekitError(f"pruner={folder} excludes {', '.join(options)}")
        return Pruner.load(folder)
    name, variant = options.pop("method", None), options.pop("variant", None)
    parts = _parts(options, preset(name) if name else {})
    entries = {key: value for key, value in options.items() if "." not in key and key not in KINDS} | parts
    if name:
        return method(name, variant=variant, **entries)
    return Pruner.from_dict(with_variant(check_preset(entries), variant), "model_args")


def _parts(options: Mapping[str, object], base: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Components named, or with options set, each with its ``name``; options alone amend those of ``base``."""
    parts = {kind: {"name": options[kind]} for kind in KINDS if kind in options}
    for key, value in options.items():
        kind, dot, field = key.partition(".")
        if dot and kind not in KINDS:
            raise UnknownNameError("model_args:", key, KINDS)
        if dot:
            there = base.get(kind)
            part = dict(there) if isinstance(there, Mapping) and there else {"name": DEFAULTS[kind]}
            parts.setdefault(kind, part)[field] = value
    return parts


def _plain(value: object) -> object:
    """Lists come as text: "[2,4]"."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
