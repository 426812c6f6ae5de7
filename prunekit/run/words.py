"""The words of the command line, before Hydra gets them: checked, made plain, and quoted to be printed again."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.pruning.presets import methods
from prunekit.registry import KINDS, registry, source_folder

CONF = source_folder("conf")
WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i"),
)
FUNCTIONS = (
    *("choice", "range", "interval", "glob", "sort", "shuffle", "tag", "extend_list"),
    *("json_str", "int", "float", "str", "bool"),
)
MAY_GO = ("hydra", "rows", "table", "study", "defaults")
"""Parts of the configuration of which a ``~`` may delete something; a run needs the others whole, but for a component's
options, which have defaults."""


def prepared(arguments: list[str]) -> list[str]:
    """The arguments as Hydra is to get them.

    Raises:
        PrunekitError: for an unknown flag or option, a word that cannot be read, and a deletion of what a run needs.
    """
    arguments = tidy(arguments)
    words = dict(overrides(arguments))
    known = choices(arguments)
    for place, override in words.items():
        check_deletion(override)
        if override.key_or_group in known and not override.is_delete() and not override.is_add():
            names = known[override.key_or_group]
            if isinstance(value := override.value(), Glob):
                arguments[place] = f"{override.get_key_element()}={','.join(matching(override, value, names))}"
            else:
                check_choice(override.key_or_group, value, names)
    return arguments


def tidy(arguments: list[str]) -> list[str]:
    """The arguments with ``-m`` first, where argparse wants it; a flag that Hydra does not have is an error."""
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    for argument in arguments:
        if argument.startswith("-") and "=" not in argument and argument not in known:
            raise UnknownNameError("option", argument, known)
    sweeps = [a for a in arguments if a in ("-m", "--multirun")]
    return [*sweeps[:1], *(a for a in arguments if a not in sweeps)]


def overrides(arguments: Sequence[str]) -> Iterator[tuple[int, Override]]:
    """Those arguments that are overrides, by their place, as Hydra reads them."""
    parser, before = OverridesParser.create(), ""
    for place, word in enumerate(arguments):
        flag = word.startswith("-") or before in WITH_VALUE
        before, previous = word, before
        if flag:
            continue
        try:
            yield place, parser.parse_override(word)
        except HydraException as error:
            behind = itertools.takewhile(lambda w: "=" not in w and not w.startswith("-"), arguments[place:])
            raise PrunekitError(unreadable(word, [previous, *behind], error)) from None


def unreadable(word: str, split: Sequence[str], error: Exception) -> str:
    """What is wrong with a word that Hydra cannot read, and how to quote it if that is all that it lacks. ``split`` are
    the word before it, itself, and those behind it that may be parts of one value."""
    key, equals, value = word.partition("=")
    if not equals:
        hint = ""
        if "=" in split[0] and not split[0].startswith("-"):
            key, _, value = " ".join(split).partition("=")
            hint = f"; a value with a space is quoted: {quoted(key, value)}"
        return f"'{word}' is no option of the form key=value{hint}"
    if value and value[0] not in "[{\"'=" and not re.match(rf"({'|'.join(FUNCTIONS)})\(", value):
        whole = str(Path(value).expanduser()) if value.startswith("~") else value
        return (
            f"{word}: the value has a character that Hydra reads in quotes only (~, =, a bracket, a letter outside "
            f"ASCII): write {quoted(key, whole)}"
        )
    reason = " ".join(str(error).split("See https")[0].split())
    return f"{word} cannot be read: {reason}"


def quoted(key: str, value: str) -> str:
    """``key=value`` as a word of the shell that Hydra reads as exactly this text."""
    parser = OverridesParser.create()
    forms = [value, *(QuotedString(value, quote).with_quotes() for quote in (Quote.double, Quote.single))]
    for form in forms:
        try:
            found: Any = parser.parse_override(f"{key}={form}").value()
        except HydraException:
            continue
        if found == value and type(found) is str:
            return shlex.quote(f"{key}={form}")
    return shlex.quote(f"{key}={forms[1]}")


def choices(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The options of each group, as far as prunekit knows them: a folder of the user's own may add to them, then Hydra
    alone does."""
    if any(a.startswith(("--config-dir", "-cd")) for a in arguments):
        return {}
    files = {g: [p.stem for p in (CONF / g).glob("*.yaml")] for g in ("model", "data", "experiment", "train")}
    components = {kind: registry.available(kind) for kind in KINDS} | {"method": list(methods())}
    return {group: [n for n in names if not n.startswith("_")] for group, names in {**components, **files}.items()}


def check_choice(group: str, value: Any, known: Sequence[str]) -> None:
    """Raise for an option that a group does not have, naming the nearest one that it has."""
    if isinstance(value, Sweep) and not isinstance(value, ChoiceSweep):
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        if choice is not None and not (str(choice).startswith("_") or str(choice) in known):
            raise UnknownNameError(group, choice, known)


def matching(override: Override, pattern: Glob, known: Sequence[str]) -> list[str]:
    """The options that a ``glob(...)`` stands for."""
    if found := pattern.filter(sorted(known)):
        return found
    raise PrunekitError(f"{override.input_line}: no {override.key_or_group} is named so; there are {', '.join(known)}")


def check_deletion(override: Override) -> None:
    """Raise for ``~reducer`` and the like: what a run needs can be set, not left out."""
    if not override.is_delete():
        return
    key, (part, _, rest) = override.key_or_group, override.key_or_group.partition(".")
    needed = {*KINDS, "model", "data", "train", *yaml.safe_load((CONF / "config.yaml").read_text())} - {*MAY_GO}
    if part in needed and (part not in KINDS or rest in ("", "name")):
        raise PrunekitError(f"~{key}: a run needs '{key}'; set it by {key}=VALUE instead of deleting it")
