"""From the typed configuration to objects: the pruner, the model, the examples. Jobs of a process share them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prunekit import ranks
from prunekit.errors import PrunekitError, RowError
from prunekit.families import support_of
from prunekit.pruning.budget import for_prompt
from prunekit.pruning.planner import allotment_of
from prunekit.pruning.presets import preset, with_preset, with_variant
from prunekit.pruning.pruner import Pruner
from prunekit.registry import KINDS, registry
from prunekit.run.config import DataOptions, RunConfig

if TYPE_CHECKING:
    from prunekit.data.example import Example
    from prunekit.data.source import Examples, Source
    from prunekit.evaluation.batches import Batcher
    from prunekit.models import LoadedModel

ModelKey = tuple[tuple[str, Any], ...]
"""The options of ``load_model``, sorted, to keep models by."""


def build_pruner(config: RunConfig, **replaced: object) -> Pruner:
    """The pruner of a configuration; ``replaced`` components take the place of its own."""
    parts: dict[str, Any] = {}
    chosen = with_variant({kind: config.component(kind) for kind in KINDS}, config.variant)
    for kind in KINDS:
        options = chosen[kind]
        if "seed" in options and options["seed"] is None:
            options["seed"] = config.seed
        if options["name"] == "learned" and kind == "fusion" and options.get("weights") is None:
            options["weights"] = config.model.fusion_weights
        parts[kind] = replaced.get(kind) or registry.create(kind, options.pop("name"), **options)
    named = {key: getattr(config, key) for key in ("keep_ratio", "keep_tokens", "budget", "positions")}
    rest = preset(config.preset) if config.preset else {}
    settings = with_preset({key: value for key, value in rest.items() if key in named}, named)
    return Pruner(**parts, **settings, name=config.preset)


def load_examples(config: RunConfig, data: DataOptions | None = None) -> Source | Examples:
    """The examples that the configuration names, or those of other ``data``: a list, or a ``Source`` that makes them as
    they are asked for. Where the questions depend on the model's type, the model is loaded first."""
    from prunekit.data.source import open_source

    options = (data or config.data).opened()
    if options.get("style") == "auto":
        options["style"] = style_of(load(config))
    return open_source(options)


def style_of(loaded: LoadedModel) -> str:
    """The style of ``data.boxes.STYLES`` that a model's type answers in."""
    style = support_of(loaded.model.config.model_type).style
    cropped = getattr(loaded.processor.image_processor, "do_center_crop", False)
    return "llava_crop" if style == "llava" and cropped else style


_examples: dict[str, Examples] = {}


def shared_examples(config: RunConfig) -> Source | Examples:
    """The configured examples; a sweep's jobs in one process share them, unless they are a stream."""
    key = json.dumps(config.data.opened(), sort_keys=True, default=str)
    if key not in _examples:
        examples = load_examples(config)
        if not isinstance(examples, list):
            return examples
        _examples.clear()
        _examples[key] = examples
    return _examples[key]


@functools.lru_cache(maxsize=1)
def _cached_model(options: ModelKey) -> LoadedModel:
    from prunekit.models import load_model

    return load_model(**dict(options))


@functools.lru_cache(maxsize=1)
def _cached_batcher(options: ModelKey) -> Batcher:
    from prunekit.evaluation.batches import Batcher

    return Batcher(_cached_model(options))


def load(config: RunConfig, fresh: bool = False) -> LoadedModel:
    """The configured model; a sweep's jobs in one process share it, unless it is to be ``fresh``, for training."""
    options = _model_options(config)
    return _cached_model.__wrapped__(options) if fresh else _cached_model(options)


def shared_batcher(config: RunConfig) -> Batcher:
    """The batcher of the configured model; a sweep's jobs in one process share it, and encode each image once."""
    return _cached_batcher(_model_options(config))


def _model_options(config: RunConfig) -> ModelKey:
    model = config.model
    if model.name == "???":
        raise PrunekitError("model.name is missing: model=hf model.name=HUB_ID_OR_FOLDER")
    if model.device_map is not None and ranks.world() > 1:
        raise PrunekitError(
            f"model.device_map={model.device_map} spreads one model over the devices, but {ranks.world()} processes "
            "have a model each: run it in one process, or leave it out"
        )
    options = model.model_dump(exclude={"fusion_weights"})
    options |= {"device": config.device, "dtype": config.dtype, "attn": config.attn}
    return tuple(sorted(options.items()))


def data_name(data: DataOptions) -> str:
    """Name of the data and its split, as metrics and caches use it."""
    from prunekit.data.source import source_name

    return source_name(data.opened())


def _first_inputs(batcher: Batcher, examples: Iterable[Example]) -> dict[str, Any]:
    for example in examples:
        try:
            return batcher.inputs([example])
        except RowError as error:
            reason = error
    raise reason


def first_prompt(loaded: LoadedModel, examples: Iterable[Example]) -> tuple[int, int]:
    """Visual and other tokens of the first usable example's prompt."""
    from prunekit.evaluation.batches import Batcher
    from prunekit.families import make_family

    inputs = _first_inputs(Batcher(loaded), examples)
    visual = int(make_family(loaded.model).find_visual(inputs["input_ids"], inputs).sum())
    return visual, inputs["input_ids"].shape[1] - visual


def fit_budget(pruner: Pruner, loaded: LoadedModel, examples: Iterable[Example]) -> Pruner:
    """For a budget: the pruner with its layers chosen for prompts like the first usable example's; prints what comes
    out."""
    if pruner.budget is None:
        return pruner
    from prunekit.families import make_family

    fitted = pruner.replace(budget=for_prompt(pruner.budget, *first_prompt(loaded, examples)))
    if (allotment := allotment_of(fitted, make_family(loaded.model))) is not None:
        print(allotment.describe())
    return fitted
