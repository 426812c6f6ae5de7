"""Pruners on disk: YAML for names and options, safetensors for weights, never pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prunekit.errors import PrunekitError
from prunekit.pruning.recipe import Recipe
from prunekit.registry import KINDS, registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE, WEIGHTS, CONFIG = "pruner.yaml", "{kind}.safetensors", "config.json"
ARCHITECTURE = "PrunekitForConditionalGeneration"
"""What ``architectures`` of a model's config names, so that vLLM serves it pruned."""

CONFIG_KEY = "prunekit"
"""Where a model's config, and ``mm_processor_kwargs`` of a request, hold the options of pruning."""


def save(recipe: Recipe, folder: Path) -> None:
    """Write ``pruner.yaml`` and, for a component with weights, ``fusion.safetensors`` or the like beside it.

    Raises:
        PrunekitError: for a component that is not registered, which ``load`` could not make.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = recipe.describe()
    for kind, component in recipe.components.items():
        if registry.classes(kind).get(data[kind]["name"]) is not type(component):
            raise PrunekitError(f"{kind} {type(component).__name__} is not registered: it could not be loaded again")
    for kind, component in recipe.components.items():
        file = WEIGHTS.format(kind=kind)
        if component.save_weights(folder / file):
            data[kind]["weights"] = file
        elif source := data[kind].get("weights"):
            if Path(source).resolve() != (folder / file).resolve():
                shutil.copyfile(source, folder / file)
            data[kind]["weights"] = file
    try:
        text = yaml.safe_dump(data, sort_keys=False)
    except yaml.YAMLError as error:
        raise PrunekitError(f"an option cannot be written as YAML: {' '.join(str(error).split())}") from None
    (folder / FILE).write_text(text)


def save_served(recipe: Recipe, folder: Path, model: PreTrainedModel | str | Path, processor: Any = None) -> None:
    """Write a model with the recipe in its ``config.json``: a folder that vLLM serves pruned, where prunekit's plug-in
    is installed, and that transformers loads as the dense model. Its folder ``prunekit`` is what ``load`` reads.

    Args:
        model: as loaded, or its folder, whose files are copied.
        processor: the loaded model's; by default that of the folder or hub id that it came from.

    Raises:
        PrunekitError: for what ``save`` refuses, a folder without a model, and a folder that would copy itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, str | Path):
        if not (Path(model) / CONFIG).is_file():
            raise PrunekitError(f"no {CONFIG} in '{model}': give a model's folder, or a loaded model")
        if Path(model).resolve() == folder.resolve():
            raise PrunekitError(f"'{folder}' is the model's own folder: name another")
        shutil.copytree(model, folder, dirs_exist_ok=True)
    else:
        _save_loaded(folder, model, processor)
    save(recipe, folder / CONFIG_KEY)  # beside the model's own weights vLLM would take a component's for some of them
    options = yaml.safe_load((folder / CONFIG_KEY / FILE).read_text())
    for part in options.values():
        if isinstance(part, dict) and part.get("weights"):
            part["weights"] = f"{CONFIG_KEY}/{part['weights']}"
    config = json.loads((folder / CONFIG).read_text())
    config |= {"architectures": [ARCHITECTURE], CONFIG_KEY: options}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _save_loaded(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    from transformers import AutoProcessor

    if processor is None:
        source = model.config.name_or_path
        try:
            processor = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise PrunekitError(f"no processor of '{source}' ({reason}): save(..., processor=...)") from None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load(folder: Path) -> dict[str, Any]:
    """The options of the recipe in a folder that ``save`` wrote.

    Raises:
        PrunekitError: for a folder without a readable pruner.yaml.
    """
    if not (folder / FILE).is_file():
        raise PrunekitError(f"no {FILE} in '{folder}'")
    try:
        data = yaml.safe_load((folder / FILE).read_text())
    except yaml.YAMLError as error:
        raise PrunekitError(f"'{folder / FILE}' is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise PrunekitError(f"'{folder / FILE}' does not describe a pruner")
    for kind in KINDS:
        if isinstance(part := data.get(kind), dict) and part.get("weights"):
            part["weights"] = str(folder / part["weights"])
    return options_of(data, f"'{folder / FILE}'")


def options_of(data: Mapping[str, object], where: str) -> dict[str, Any]:
    """The options of a recipe from plain data: a component is a name, or a mapping with ``name`` and its options.

    Raises:
        PrunekitError: for a name or an option that there is not.
    """
    options: dict[str, Any] = {}
    for key, value in data.items():
        if key in KINDS and isinstance(value, dict):
            fields = dict(value)
            if "name" not in fields:
                raise PrunekitError(f"{where}: {key} has no name")
            options[key] = registry.create(key, fields.pop("name"), **fields)
        elif key in (*KINDS, "keep_ratio", "keep_tokens", "budget", "positions", "name"):
            options[key] = value
        else:
            raise PrunekitError(f"{where}: unknown entry '{key}'")
    return options
