"""What the command line can do: each task takes the composed configuration as plain data."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit import ranks
from prunekit.errors import PrunekitError, RowError, check_choice
from prunekit.pruning.budget import for_prompt
from prunekit.pruning.planner import allotment_of
from prunekit.pruning.presets import preset, with_preset, with_variant
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.registry import KINDS, registry


@dataclass(frozen=True)
class Context:
    """Where a job runs: its folder, the sweep it belongs to, and the options chosen in each group."""

    folder: Path
    sweep: str | None
    choices: dict[str, str]


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


def run_eval(config: dict[str, Any], context: Context) -> float | None:
    """``task=eval``: dense against pruned on the data; table, metrics.json, predictions.jsonl, kept.png, W&B.

    Returns:
        What a sweeper may optimise: the mean accuracy, or a number below any where ``objective.flops_limit`` is passed.
    """
    from prunekit.evaluation.other import with_evidence
    from prunekit.jobs import Job, identity
    from prunekit.tracking import MODES

    check_choice("logger.mode", config["logger"]["mode"], MODES)
    pruner, limit = build_pruner(config), flops_limit(config)
    job = Job(context.folder, identity(config, pruner.components.values()))
    if config["resume"] and (metrics := job.finished()) is not None:
        print(f"finished before: {context.folder} (accuracy {100 * metrics['accuracy']['mean']:.1f} %)")
        return metrics["accuracy"]["mean"]
    sizes: dict[str, Any] = {"batch_size": whole(config, "batch_size", 1), "seed": whole(config, "seed", 0)}
    pruner, examples = with_evidence(config["evidence"], pruner, shared_examples(config))
    loaded = load(config)
    pruner = fit_budget(pruner, loaded, examples)
    if limit is not None and (flops := expected_flops(pruner, loaded, examples)) > limit:
        print(f"not run: {flops:.3f} of the dense prefill's FLOPs, more than objective.flops_limit={limit:g}")
        return limit - flops
    job.write(finished=False)
    metrics = _evaluate(config, context, pruner, loaded, examples, sizes)
    job.write(finished=True)
    return metrics["accuracy"]["mean"]


def _evaluate(
    config: dict[str, Any], context: Context, pruner: Pruner, loaded: Any, examples: Any, sizes: dict[str, Any]
) -> dict[str, Any]:
    """Run, print, draw and log one evaluation; its metrics."""
    from prunekit.evaluation.pictures import draw_kept, overlays
    from prunekit.evaluation.run import evaluate
    from prunekit.evaluation.table import print_tables
    from prunekit.families import make_family
    from prunekit.tracking import PICTURES, log_run

    found = evaluate(
        loaded,
        examples,
        pruner,
        context.folder,
        data=data_name(config),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        resume=bool(config["resume"]),
        overwrite=bool(config["overwrite"]),
        batcher=shared_batcher(config),
        **sizes,
    )
    if not ranks.is_first():
        return found.metrics
    mode, grid = config["logger"]["mode"], make_family(loaded.model).grid
    draw_kept(found.examples, found.rows, grid, context.folder / "kept.png")
    print_tables(found.metrics)
    parts = {kind: component_name(component) for kind, component in pruner.components.items()}
    tags = [f"{kind}={choice}" for kind, choice in {**context.choices, **parts}.items()]
    line = log_run(
        context.folder,
        mode,
        config=config,
        metrics=found.metrics,
        group=context.sweep,
        tags=tags,
        examples=[] if mode == "disabled" else overlays(found.examples, found.rows, grid, PICTURES),
    )
    print(f"files: {context.folder} (metrics.json, predictions.jsonl, kept.npz, kept.png)\n{line}")
    return found.metrics


def flops_limit(config: dict[str, Any]) -> float | None:
    """``objective.flops_limit``, checked."""
    limit = config["objective"]["flops_limit"]
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1):
        raise PrunekitError(f"objective.flops_limit must lie in (0, 1], not {limit!r}")
    return limit


def expected_flops(pruner: Pruner, loaded: Any, examples: Iterable[Any]) -> float:
    """``flops_ratio`` of a prompt like the first example's, by the cost meter: nothing is run."""
    from prunekit.cost import estimate, shape_of

    shape, (visual, text) = shape_of(loaded.model), first_prompt(loaded, examples)
    pruned, dense = (estimate(shape, p, visual=visual, text=text, convention="gated") for p in (pruner, None))
    return pruned.prefill / dense.prefill


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


def _first_inputs(batcher: Any, examples: Iterable[Any]) -> dict[str, Any]:
    for example in examples:
        try:
            return batcher.inputs([example])
        except RowError as error:
            reason = error
    raise reason


def run_bench(config: dict[str, Any], context: Context) -> None:
    """``task=bench``: dense, pruned, ceiling and eager_fastv timed in turn; table, bench.json, bench.png."""
    from prunekit.bench.task import Settings, bench

    if ranks.world() > 1:
        raise PrunekitError(f"task=bench measures time: run it in one process, not in {ranks.world()}")
    options = config["bench"]
    counts = options["visual_tokens"]
    if counts is not None and (not isinstance(counts, list) or not counts):
        raise PrunekitError(f"bench.visual_tokens must be a list of counts like [576,2880], not {counts!r}")
    for place, count in enumerate(counts or ()):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise PrunekitError(f"bench.visual_tokens[{place}] must be a whole number from 1 on, not {count!r}")
    for name in ("eager", "profile"):
        if not isinstance(options[name], bool):
            raise PrunekitError(f"bench.{name} must be true or false, not {options[name]!r}")
    bench(
        config["shape"],
        build_pruner(config),
        Settings(
            visual=counts,
            text=whole(config, "bench.text_tokens", 2),
            batch=whole(config, "bench.batch_size", 1),
            rounds=whole(config, "bench.rounds", 1),
            new_tokens=whole(config, "bench.new_tokens", 0),
            eager=options["eager"],
            profile=options["profile"],
        ),
        context.folder,
        load=lambda: load(config),
        first_example=lambda: next(iter(load_examples(config))),
        device=config["device"],
        dtype=config["dtype"],
        attn=config["attn"],
    )


def run_families(config: dict[str, Any], context: Context) -> None:
    """``task=families``: the table of model families, from the measurements that ship with prunekit."""
    from prunekit.evaluation.families import print_families

    print_families()


def run_layers(config: dict[str, Any], context: Context) -> None:
    """``task=layers``: a one-shot cut at every layer; accuracy and cost of each, and the layer to choose."""
    from prunekit.data.source import gather
    from prunekit.evaluation.layers import select_layer

    select_layer(
        load(config),
        gather(load_examples(config)),
        lambda layer: build_pruner(config, schedule=registry.create("schedule", "one_shot", layer=layer)),
        context.folder,
        data=data_name(config),
        batch_size=whole(config, "batch_size", 1),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        seed=whole(config, "seed", 0),
        resume=bool(config["resume"]),
        overwrite=bool(config["overwrite"]),
    )


def run_report(config: dict[str, Any], context: Context) -> None:
    """``task=report``: tables, plots and one page from the runs of a folder."""
    from prunekit.report.task import print_report, report
    from prunekit.tracking import MODES, log_report

    mode = config["logger"]["mode"]
    check_choice("logger.mode", mode, MODES)
    found = report(config["runs"], context.folder, config["report"]["reference"])
    print_report(found, context.folder)
    print(log_report(context.folder, mode, config=config))


def run_train(config: dict[str, Any], context: Context) -> None:
    """``task=train``: fine-tuning under pruning; artifacts, training.jsonl, and the evaluation of what came out."""
    from prunekit.train.task import run

    run(config, context)


def run_study(config: dict[str, Any], context: Context) -> None:
    """``task=study``: learned fusion and sparse fine-tuning against no training; a table for docs/training.md."""
    from prunekit.train.study import run

    run(config, context)
