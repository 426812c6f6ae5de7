"""The registry as Hydra's config groups: every component and every method preset is an option, without YAML for it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunekit.pruning.presets import presets
from prunekit.registry import KINDS, option_types, registry


class Shelf(dict[str, Any]):
    """What Hydra's store holds. Hydra copies all of it for every composition, and what it loads from it once more; the
    first copy, a fifth of a second here, nobody changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shelf:
        return self


_stored: set[tuple[str, str]] = set()  # group and name of what this module has put into Hydra's store
_book: list[object] = []  # the components and presets of which it is made


def register_options() -> None:
    """Put components and presets into Hydra's config store; called again, it does nothing where they are the same, and
    forgets those that are no more. What Hydra cannot hold is named and left out, so that a user's file cannot stop the
    others."""
    book = [classes := {kind: registry.classes(kind) for kind in KINDS}, methods := presets()]
    store = ConfigStore.instance()
    if book == _book and isinstance(store.repo, Shelf):  # Hydra may have put another store in its place
        return
    _book.clear()
    repo = store.repo = Shelf(store.repo)
    for group, name in _stored:
        repo.get(group, {}).pop(f"{name}.yaml", None)
    _stored.clear()
    for kind in KINDS:
        for name, cls in classes[kind].items():
            try:
                node = OmegaConf.structured(config_class(name, cls))
            except (OmegaConfBaseException, TypeError, NameError) as error:
                reason = " ".join(str(error).split())
                warnings.warn(f"skipped {kind} '{name}' of {cls.__module__}: {reason}", stacklevel=2)
            else:
                _store(kind, name, node)
    for name, (_, data) in methods.items():
        _register_method(name, data)
    _book[:] = book


def _store(group: str, name: str, node: object, package: str | None = None) -> None:
    ConfigStore.instance().store(group=group, name=name, node=node, package=package)
    _stored.add((group, name))


def config_class(name: str, cls: type, **values: object) -> type:
    """A structured config of a component: its ``name`` and its fields; ``values`` replace defaults."""
    hints = option_types(cls)
    fields: list[Any] = [("name", str, dataclasses.field(default=name))]
    for f in (f for f in dataclasses.fields(cls) if f.init):
        default = values.get(f.name, f.default)
        if f.default_factory is not dataclasses.MISSING and f.name not in values:
            default = f.default_factory()
        given: Any = dataclasses.field(default=default)
        if default is dataclasses.MISSING:
            given = dataclasses.field(default="???")
        elif isinstance(default, list | dict):
            given = dataclasses.field(default_factory=functools.partial(copy.copy, default))
        fields.append((f.name, _storable(hints[f.name]), given))
    return dataclasses.make_dataclass(f"{cls.__name__}Options", fields)


def _storable(hint: object) -> Any:
    """The type if OmegaConf knows it (plain types, optionals, lists of plain types), else ``Any``."""
    plain = (int, float, str, bool)
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    if hint in plain or (len(arguments) == 1 and _storable(arguments[0]) is not Any):
        return hint
    if typing.get_origin(hint) is list and all(a in plain for a in arguments):
        return hint
    return Any


def _register_method(name: str, data: Mapping[str, Any]) -> None:
    """A preset chooses an option of each group, as the command line would; where it sets options, one of its own.

    So ``schedule=progressive`` after ``method=fastv`` replaces the choice, and the preset's settings go with it.
    """
    choices: list[Any] = []
    for kind in KINDS:
        if not (part := dict(data.get(kind) or {})):
            continue
        option = component = part.pop("name")
        if part:
            option = f"_{name}"
            _store(kind, option, config_class(component, registry.get(kind, component), **part))
        choices.append({f"override /{kind}": option})
    node = {"defaults": [*choices, "_self_"], "preset": name}
    _store("method", name, node, package="_global_")
