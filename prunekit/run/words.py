"""The words of the command line, read in one place: checked, under their present names, and quoted to be printed again.

The rows of a sweep are words too (``prunekit.run.rows``), and so are the parameters of a sweeper."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

# Hydra has no public module that knows its flags; a list of our own would miss those of another release.
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.pruning.presets import methods
from prunekit.records.old_names import modern_word
from prunekit.registry import KINDS, registry, source_folder

CONF = source_folder("conf")
FUNCTIONS = tuple(create_functions().functions)
"""What a value may call: choice, range, glob ..."""
MAY_GO = ("hydra", "study", "defaults")
"""Parts of the configuration of which a ``~`` may delete something; a run needs the others whole, but for what stands
below ``sweep``, and for a component's options, which have defaults."""


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra is to get them: flags first, where argparse wants them, then the overrides.

    Raises:
        PrunekitError: for an unknown flag or option, a word that cannot be read, and a deletion of what a run needs.
    """
    flags, words = split(arguments)
    known = choices(flags)
    for place in range(len(words)):
        override = read_word(words, place)
        check_deletion(override)
        if override.key_or_group in known and not override.is_delete() and not override.is_add():
            names = known[override.key_or_group]
            if isinstance(value := override.value(), Glob):
                words[place] = f"{override.get_key_element()}={','.join(matching(override, value, names))}"
            else:
                check_choice(override.key_or_group, value, names)
    return [*flags, *words]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, each with its value, and overrides under their present names. A flag that Hydra does not have is an
    error."""
    with_value = {
        option: action.nargs != 0 for action in get_args_parser()._actions for option in action.option_strings
    }
    flags: list[str] = []
    words: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith("-"):
            words.append(modern_word(argument))
            continue
        name, equals, _ = argument.partition("=")
        if name not in with_value:
            raise UnknownNameError("option", name, with_value)
        flags += [argument, *itertools.islice(pending, int(with_value[name] and not equals))]
    if "task=study" in words and any(word.startswith("experiment=") for word in words):
        words.remove("task=study")  # the old word for a sweep over rows whose jobs train
    return flags, words


def read_words(words: Iterable[object], loader: ConfigLoader | None = None) -> list[Override]:
    """Overrides that stand in a configuration, or that were checked before; ``loader`` knows what a ``glob`` is of."""
    return OverridesParser.create(config_loader=loader).parse_overrides([modern_word(str(word)) for word in words])


def read_word(words: Sequence[str], place: int) -> Override:
    """One word of the command line, as Hydra reads it.

    Raises:
        PrunekitError: for one that Hydra cannot read; it says how to quote it.
    """
    try:
        return OverridesParser.create().parse_override(words[place])
    except HydraException as error:
        raise PrunekitError(unreadable(words, place, error)) from None


def product(overrides: Iterable[Override]) -> list[dict[str, str]]:
    """The jobs that overrides with sweeps among them stand for: the words of each by their keys, the last key varying
    fastest. Of two overrides of a key the later counts.

    Raises:
        HydraException: for a sweep over an interval, of which there is no product.
    """
    options: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            options[key] = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            options[key] = list(override.sweep_string_iterator())
        else:
            raise HydraException(f"{override.input_line}: an interval has no product; it needs hydra/sweeper=optuna")
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def unreadable(words: Sequence[str], place: int, error: Exception) -> str:
    """What is wrong with a word that Hydra cannot read, and how to quote it if that is all that it lacks. The words
    beside one without "=" may be parts of one value with spaces."""
    word, before = words[place], words[place - 1] if place else ""
    key, equals, value = word.partition("=")
    if not equals:
        hint = ""
        if "=" in before:
            behind = itertools.takewhile(lambda w: "=" not in w, words[place:])
            key, _, value = " ".join([before, *behind]).partition("=")
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
            value_read = parser.parse_override(f"{key}={form}").value()
        except HydraException:
            continue
        if value_read == value and type(value_read) is str:
            return shlex.quote(f"{key}={form}")
    return shlex.quote(f"{key}={forms[1]}")


def choices(flags: Sequence[str]) -> dict[str, list[str]]:
    """The options of each group, as far as prunekit knows them: a folder of the user's own may add to them, then Hydra
    alone does."""
    if any(flag.startswith(("--config-dir", "-cd")) for flag in flags):
        return {}
    files = {g: [p.stem for p in (CONF / g).glob("*.yaml")] for g in ("model", "data", "experiment", "train")}
    components = {kind: registry.available(kind) for kind in KINDS} | {"method": list(methods())}
    return {group: [n for n in names if not n.startswith("_")] for group, names in {**components, **files}.items()}


def check_choice(group: str, value: object, known: Sequence[str]) -> None:
    """Raise for an option that a group does not have, naming the nearest one that it has."""
    if isinstance(value, Sweep) and not isinstance(value, ChoiceSweep):
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        if choice is not None and not (str(choice).startswith("_") or str(choice) in known):
            raise UnknownNameError(group, choice, known)


def matching(override: Override, pattern: Glob, known: Sequence[str]) -> list[str]:
    """The options that a ``glob(...)`` stands for."""
    if names := pattern.filter(sorted(known)):
        return names
    raise PrunekitError(f"{override.input_line}: no {override.key_or_group} is named so; there are {', '.join(known)}")


def check_deletion(override: Override) -> None:
    """Raise for ``~reducer`` and the like: what a run needs can be set, not left out."""
    if not override.is_delete():
        return
    key, (part, _, rest) = override.key_or_group, override.key_or_group.partition(".")
    needed = {*KINDS, "model", "data", "train", *yaml.safe_load((CONF / "config.yaml").read_text())} - {*MAY_GO}
    may_go = rest not in ("", "name") if part in KINDS else part == "sweep" and rest != ""
    if part in needed and not may_go:
        raise PrunekitError(f"~{key}: a run needs '{key}'; set it by {key}=VALUE instead of deleting it")
