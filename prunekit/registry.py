"""Names to component classes: the one book that Python, the command line and the saved pruners look names up in."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prunekit.errors import PrunekitError, UnknownNameError

T = TypeVar("T", bound=type)
KINDS = ("scorer", "fusion", "schedule", "selector", "reducer")
METHOD_MODULES = "prunekit_methods."
"""How the names of modules begin that were read from method folders."""


class Registry:
    """Dataclasses by kind and name. Holds classes, never instances; a name taken twice is an error."""

    def __init__(self, kinds: tuple[str, ...] = KINDS) -> None:
        self._classes: dict[str, dict[str, type]] = {kind: {} for kind in kinds}
        self._files: dict[Path, str] = {}
        self._compositions: dict[str, tuple[dict[str, Any], Path | None]] = {}

    def register(self, kind: str, name: str) -> Callable[[T], T]:
        """Class decorator (above ``@dataclass``): the class becomes component ``name`` and its fields its options.

        Raises:
            PrunekitError: for another class than a component, and a name that is taken.
        """
        table = self._table(kind)

        def add(cls: T) -> T:
            if not dataclasses.is_dataclass(cls):
                raise PrunekitError(f"{kind} '{name}': {cls.__name__} must be a dataclass (@register above @dataclass)")
            if "name" in {f.name for f in dataclasses.fields(cls)}:
                raise PrunekitError(f"{kind} '{name}': a field cannot be called 'name', that is the component's own")
            if name in table:
                raise PrunekitError(f"{kind} '{name}' is already registered, by {table[name].__module__}")
            table[name] = cls
            cls.registered_name = name  # type: ignore[attr-defined]
            return cls

        return add

    def compose(self, name: str, **entries: object) -> None:
        """Name a composition, as a YAML preset beside the file would: ``method=name`` runs it.

        ``entries`` are those of a preset: components (a name, or a mapping of ``name`` and options), a budget,
        ``positions``. They are checked when presets are read.

        Raises:
            PrunekitError: for a name that is taken, and entries that are no composition.
        """
        if name in self._compositions:
            raise PrunekitError(f"method '{name}' is already defined, in {self._compositions[name][1]}")
        loading = [path for path, state in self._files.items() if state == "loading"]
        self._compositions[name] = (entries, loading[-1] if loading else None)

    def compositions(self) -> dict[str, tuple[dict[str, Any], Path | None]]:
        """Compositions of the method folders' Python files by name, each with its file (None: not from a file)."""
        self.discover()
        return copy.deepcopy(self._compositions)

    def classes(self, kind: str) -> dict[str, type]:
        """All components of a kind by name, files of the method folders included."""
        self.discover()
        return dict(sorted(self._table(kind).items()))

    def available(self, kind: str) -> list[str]:
        """Sorted names of a kind."""
        return list(self.classes(kind))

    def get(self, kind: str, name: str) -> type:
        """The class registered under ``name``; an unknown one raises with the nearest name."""
        if name not in self._table(kind):
            self.discover()
        if name not in (table := self._table(kind)):
            raise UnknownNameError(kind, name, sorted(table))
        return table[name]

    def create(self, kind: str, name: str, **options: object) -> Any:
        """An instance of component ``name`` with ``options`` as its fields."""
        cls = self.get(kind, name)
        check_options(kind, name, cls, options)
        return cls(**options)

    def discover(self) -> list[Path]:
        """Import every file of the method folders that was not imported yet; a broken one is named and skipped."""
        loaded = []
        for folder in method_folders():
            for path in sorted(folder.glob("*.py")):
                if path not in self._files and not path.name.startswith("_"):
                    self._files[path] = "loading"
                    if self._load(path):
                        loaded.append(path)
        return loaded

    def user_files(self) -> list[Path]:
        """Files that were loaded from folders other than the built-in one."""
        built_in = source_folder("methods").resolve()
        return [path for path, state in self._files.items() if state == "loaded" and path.parent != built_in]

    def _load(self, path: Path) -> bool:
        name = f"{METHOD_MODULES}{path.parent.name}_{abs(hash(path.parent)):x}.{path.stem}"
        before = {kind: dict(table) for kind, table in self._classes.items()}, dict(self._compositions)
        try:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a user's file may fail in any way; the rest must go on
            sys.modules.pop(name, None)
            self._classes, self._compositions = before
            self._files[path] = "broken"
            line = str(error).splitlines()[0] if str(error) else ""
            warnings.warn(f"skipped {path}: {type(error).__name__}: {line}", stacklevel=2)
            return False
        self._files[path] = "loaded"
        return True

    def _table(self, kind: str) -> dict[str, type]:
        if kind not in self._classes:
            raise UnknownNameError("kind of component", kind, self._classes)
        return self._classes[kind]


@functools.cache
def option_types(cls: type) -> dict[str, Any]:
    """The types of a component's options, by name."""
    return typing.get_type_hints(cls)


def option_names(cls: type) -> list[str]:
    """The options of a component."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def check_options(kind: str, name: str, cls: type, options: Mapping[str, object]) -> None:
    """Raise for an option that component ``cls`` does not have, lacks, or has of another (plain) type."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for option in options:
        if option not in fields:
            raise UnknownNameError(f"option of {kind} '{name}':", option, fields)
    empty = (dataclasses.MISSING, dataclasses.MISSING)
    for option, field in fields.items():
        if option not in options and (field.default, field.default_factory) == empty:
            raise PrunekitError(f"{kind} '{name}' needs the option '{option}'")
    hints = option_types(cls)
    for option, value in options.items():
        if not _fits(value, hints[option]):
            wanted = getattr(hints[option], "__name__", hints[option])
            raise PrunekitError(f"{kind}.{option} must be of type {wanted}, not {value!r}")


def _fits(value: object, hint: object) -> bool:
    """Whether a value is of a plain type, an optional or list of plain types; any other type is not looked at."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if typing.get_origin(hint) is list:
        return isinstance(value, list | tuple) and all(_fits(entry, arguments[0]) for entry in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    plain = {int: int, float: int | float, str: str, bool: bool, types.NoneType: types.NoneType}
    return isinstance(value, plain[hint]) if hint in plain else True


def source_folder(name: str) -> Path:
    """``conf`` or ``methods``: the folder beside the package in a source tree, else the copy inside the wheel."""
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    return beside if (package.parent / "pyproject.toml").exists() and beside.is_dir() else package / name


def method_folders() -> list[Path]:
    """The built-in ``methods/``, the working directory's, and those of ``PRUNEKIT_METHODS``, each once.

    Raises:
        PrunekitError: for a folder of PRUNEKIT_METHODS that there is not.
    """
    named = [Path(p) for p in os.environ.get("PRUNEKIT_METHODS", "").split(os.pathsep) if p]
    folders = [source_folder("methods"), Path("methods"), *named]
    for folder in named:
        if not folder.is_dir():
            raise PrunekitError(f"PRUNEKIT_METHODS names '{folder}', which is not a folder")
    return list(dict.fromkeys(f.resolve() for f in folders if f.is_dir()))


registry = Registry()
register = registry.register
compose = registry.compose
create = registry.create
available = registry.available
