"""``--help``: what each option is, its value and its choices, from the definitions that a run is checked by."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from prunekit.options import Options, choices_of
from prunekit.registry import KINDS, registry

ENTRY = re.compile(r"(\w+): (.*)", re.DOTALL)
WIDTH = 44
"""Columns of ``name: value`` before the words about it."""


def option_groups() -> str:
    """The groups of the configuration and their options; those that begin with "_" are internal."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    lines = hydra.format_config_groups(lambda name: not name.startswith("hydra")).splitlines()
    split = [line.partition(": ") for line in lines]
    shown = {group: [o for o in options.split(", ") if not o.startswith("_")] for group, _, options in split}
    return "\n".join(f"{group}: {', '.join(options)}" for group, options in shown.items())


def option_lines(composed: DictConfig) -> str:
    """One line for each option of a composed configuration; "$" is doubled for Hydra's template."""
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items() if key != "hydra"}
    words = descriptions(settings)
    lines = [line for key, value in settings.items() for line in _lines(key, value, words)]
    return "\n".join(lines).replace("$", "$$")


def descriptions(settings: Mapping[str, object]) -> dict[str, str]:
    """What is said about each option, by its full name; components and training are those of ``settings``."""
    from prunekit.run.config import CONFIGS
    from prunekit.train.embedded import EmbeddedOptions
    from prunekit.train.settings import Settings

    words: dict[str, str] = {}
    for config in CONFIGS.values():
        words |= _described(config)
    train = settings.get("train")
    embedded = isinstance(train, Mapping) and train.get("kind") == "embedded"
    words |= _described(EmbeddedOptions if embedded else Settings)
    for kind in KINDS:
        component = settings.get(kind)
        if isinstance(component, Mapping):
            cls = registry.get(kind, str(component["name"]))
            words |= {f"{kind}.{name}": text for name, text in documented(cls).items()}
            words[f"{kind}.name"] = textwrap.shorten(
                (cls.__doc__ or "").replace("``", "").split("\n\n")[0], 100, placeholder=" ..."
            )
    return words


def documented(cls: type) -> dict[str, str]:
    """The first sentence about each entry of a class's ``Args`` or ``Attributes``, those of its parents included."""
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        for section in re.findall(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE):
            for entry in re.split(r"\n(?=\S)", textwrap.dedent(section).strip("\n")):
                if match := ENTRY.match(entry):
                    sentence = re.split(r"(?<=[\w)`\"])\.(?:\s|$)", " ".join(match[2].split()))[0]
                    entries[match[1]] = sentence.rstrip(".").replace("``", "")
    return entries


def _described(options: type[Options]) -> dict[str, str]:
    """The descriptions and choices of a model's fields, of the models within it as well."""
    words: dict[str, str] = {}
    for name, field in options.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, Options):
            words |= _described(annotation)
            continue
        choices = choices_of(field)
        parts = [field.description or "", f"({' | '.join(choices)})" if choices else ""]
        words[f"{options.group}.{name}" if options.group else name] = " ".join(part for part in parts if part)
    return words


def _lines(name: str, value: object, words: Mapping[str, str]) -> Iterator[str]:
    """The lines of an option; a group has one for each of its entries."""
    if isinstance(value, Mapping) and value and name != "sweep.rows":
        for key, entry in value.items():
            yield from _lines(f"{name}.{key}", entry, words)
        return
    left = f"{name}: {_shown(value)}"
    about = words.get(name)
    yield f"{left:<{WIDTH}} # {about}" if about else left


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("\n", "\\n")
