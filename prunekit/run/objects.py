"""From the composed configuration to objects: the pruner, the model, the examples. Jobs of a process share them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from prunekit import ranks
from prunekit.errors import PrunekitError, RowError
from prunekit.pruning.budget import for_prompt
from prunekit.pruning.planner import allotment_of
from prunekit.pruning.presets import preset, with_preset, with_variant
from prunekit.pruning.pruner import Pruner
from prunekit.registry import KINDS, registry


def build_pruner(config: dict[str, Any], **replaced: Any) -> Pruner:
    """The pruner of a configuration; ``replaced`` components take the place of its own."""
    parts: dict[str, Any] = {}
    chosen = with_variant({kind: dict(config[kind]) for kind in KINDS}, config.get("variant"))
    for kind in KINDS:
        options = chosen[kind]
        if "seed" in options and options["seed"] is None:
            options["seed"] = config["seed"]
        if options["name"] == "learned" and kind == "fusion" and options.get("weights") is None:
            options["weights"] = config["model"].get("fusion_weights")
        parts[kind] = replaced.get(kind) or registry.create(kind, options.pop("name"), **options)
    given = {key: config[key] for key in ("keep_ratio", "keep_tokens", "budget", "positions")}
    rest = preset(config["preset"]) if config["preset"] else {}
    settings = with_preset({key: value for key, value in rest.items() if key in given}, given)
    return Pruner(**parts, **settings, name=config["preset"])


def whole(config: dict[str, Any], key: str, low: int) -> int:
    """A whole number of the configuration ("data.limit"), at least ``low``."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise PrunekitError(f"{key} must be a whole number from {low} on, not {value!r}")
    return value


def load_examples(config: dict[str, Any]) -> Any:
    """The examples that ``data`` names: a list, or a ``Source`` that makes them as they are asked for."""
    from prunekit.data.source import open_source

    data = dict(config["data"])
    data["limit"] = None if data["limit"] is None else whole(config, "data.limit", 1)
    if "max_pixels" in data:
        data["max_pixels"] = whole(config, "data.max_pixels", 1)
    return open_source(data)


_examples: dict[str, Sequence[Any]] = {}


def shared_examples(config: dict[str, Any]) -> Any:
    """The examples that ``data`` names; a sweep's jobs in one process share them, unless they are a stream."""
    key = json.dumps(config["data"], sort_keys=True, default=str)
    if key not in _examples:
        found = load_examples(config)
        if not isinstance(found, Sequence):
            return found
        _examples.clear()
        _examples[key] = found
    return _examples[key]


@functools.lru_cache(maxsize=1)
def _cached_model(options: tuple[tuple[str, Any], ...]) -> Any:
    from prunekit.models import load_model

    return load_model(**dict(options))


@functools.lru_cache(maxsize=1)
def _cached_batcher(options: tuple[tuple[str, Any], ...]) -> Any:
    from prunekit.evaluation.batches import Batcher

    return Batcher(_cached_model(options))


def load(config: dict[str, Any], fresh: bool = False) -> Any:
    """The configured model; a sweep's jobs in one process share it, unless it is to be ``fresh``, for training."""
    options = _model_options(config)
    return _cached_model.__wrapped__(options) if fresh else _cached_model(options)


def shared_batcher(config: dict[str, Any]) -> Any:
    """The batcher of the configured model; a sweep's jobs in one process share it, and encode each image once."""
    return _cached_batcher(_model_options(config))


def _model_options(config: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    model = {key: value for key, value in config["model"].items() if key != "fusion_weights"}
    if model["name"] == "???":
        raise PrunekitError("model.name is missing: model=hf model.name=HUB_ID_OR_FOLDER")
    if not isinstance(model["name"], str) or not model["name"]:
        raise PrunekitError(f"model.name must be a hub id or a local folder, not {model['name']!r}")
    if not isinstance(model["device_map"], str | None):
        raise PrunekitError(f"model.device_map must be a word like 'auto', not {model['device_map']!r}")
    if not isinstance(model["trust_remote_code"], bool):
        raise PrunekitError(f"model.trust_remote_code must be true or false, not {model['trust_remote_code']!r}")
    if not isinstance(model["revision"], str | None):
        raise PrunekitError(f"model.revision must be a branch, tag or commit in quotes, not {model['revision']!r}")
    if model["device_map"] is not None and ranks.world() > 1:
        raise PrunekitError(
            f"model.device_map={model['device_map']} spreads one model over the devices, but {ranks.world()} processes "
            "have a model each: run it in one process, or leave it out"
        )
    options = {**model, **{key: config[key] for key in ("device", "dtype", "attn")}}
    return tuple(sorted(options.items(), key=lambda item: item[0]))


def data_name(config: dict[str, Any]) -> str:
    """Name of the data and its split, as metrics and caches use it."""
    from prunekit.data.source import source_name

    return source_name(config["data"])


def _first_inputs(batcher: Any, examples: Iterable[Any]) -> dict[str, Any]:
    for example in examples:
        try:
            return batcher.inputs([example])
        except RowError as error:
            reason = error
    raise reason


def first_prompt(loaded: Any, examples: Iterable[Any]) -> tuple[int, int]:
    """Visual and other tokens of the first usable example's prompt."""
    from prunekit.evaluation.batches import Batcher
    from prunekit.families import make_family

    made = _first_inputs(Batcher(loaded), examples)
    visual = int(make_family(loaded.model).find_visual(made["input_ids"], made).sum())
    return visual, made["input_ids"].shape[1] - visual


def fit_budget(pruner: Pruner, loaded: Any, examples: Iterable[Any]) -> Pruner:
    """For a budget: the pruner with its layers chosen for prompts like the first usable example's; prints what comes
    out."""
    if pruner.budget is None:
        return pruner
    from prunekit.families import make_family

    fitted = pruner.replace(budget=for_prompt(pruner.budget, *first_prompt(loaded, examples)))
    if (allotment := allotment_of(fitted, make_family(loaded.model))) is not None:
        print(allotment.describe())
    return fitted
