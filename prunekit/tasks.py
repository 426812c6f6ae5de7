"""What the command line can do: each task takes the composed configuration as plain data."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit import ranks
from prunekit.errors import PrunekitError, RowError, check_choice
from prunekit.presets import preset, with_preset, with_variant
from prunekit.pruner import Pruner, component_name
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


@functools.lru_cache(maxsize=1)
def _cached_model(options: tuple[tuple[str, Any], ...]) -> Any:
    from prunekit.models import load_model

    return load_model(**dict(options))


def load(config: dict[str, Any]) -> Any:
    """The configured model; a sweep's jobs in one process share it."""
    model = config["model"]
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
    return _cached_model(tuple(sorted(options.items())))


def data_name(config: dict[str, Any]) -> str:
    """Name of the data and its split, as metrics and caches use it."""
    from prunekit.data.source import source_name

    return source_name(config["data"])


def run_eval(config: dict[str, Any], context: Context) -> None:
    """``task=eval``: dense against pruned on the data; table, metrics.json, predictions.jsonl, kept.png, W&B."""
    from prunekit.evaluation.pictures import draw_kept
    from prunekit.evaluation.run import evaluate
    from prunekit.evaluation.table import print_tables
    from prunekit.families import make_family
    from prunekit.tracking import MODES, log_run

    check_choice("logger.mode", config["logger"]["mode"], MODES)
    pruner = build_pruner(config)
    sizes: dict[str, Any] = {"batch_size": whole(config, "batch_size", 1), "seed": whole(config, "seed", 0)}
    examples = load_examples(config)
    loaded = load(config)
    pruner = fit_budget(pruner, loaded, examples)
    found = evaluate(
        loaded,
        examples,
        pruner,
        context.folder,
        data=data_name(config),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        resume=bool(config["resume"]),
        **sizes,
    )
    if not ranks.is_first():
        return
    draw_kept(found.examples, found.rows, make_family(loaded.model).grid, context.folder / "kept.png")
    print_tables(found.metrics)
    parts = {kind: component_name(component) for kind, component in pruner.components.items()}
    tags = [f"{kind}={choice}" for kind, choice in {**context.choices, **parts}.items()]
    line = log_run(
        context.folder,
        config["logger"]["mode"],
        config=config,
        metrics=found.metrics,
        group=context.sweep,
        tags=tags,
    )
    print(f"files: {context.folder} (metrics.json, predictions.jsonl, kept.png)\n{line}")


def fit_budget(pruner: Pruner, loaded: Any, examples: Iterable[Any]) -> Pruner:
    """For a budget: the pruner with its layers chosen for prompts like the first usable example's; prints what comes
    out."""
    if pruner.budget is None:
        return pruner
    from prunekit.evaluation.batches import Batcher
    from prunekit.families import make_family

    family = make_family(loaded.model)
    made = _first_inputs(Batcher(loaded), examples)
    visual = int(family.find_visual(made["input_ids"], made).sum())
    fitted = pruner.for_prompt(visual, made["input_ids"].shape[1] - visual)
    if (allotment := fitted.plan(family).allotment) is not None:
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
    bench(
        config["shape"],
        build_pruner(config),
        Settings(
            visual=counts,
            text=whole(config, "bench.text_tokens", 2),
            batch=whole(config, "bench.batch_size", 1),
            rounds=whole(config, "bench.rounds", 1),
            new_tokens=whole(config, "bench.new_tokens", 0),
            eager=bool(options["eager"]),
            profile=bool(options["profile"]),
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
    )


def run_methods(config: dict[str, Any], context: Context) -> None:
    """``task=methods``: every method at several keep ratios on the same examples; a table for docs/results.md."""
    from prunekit.data.source import gather
    from prunekit.evaluation.results import Runs, compare, write_results
    from prunekit.presets import methods

    table = config["table"]
    keeps, names = table["keep"], table["methods"] or list(methods())
    for keep in keeps if isinstance(keeps, list) else [keeps]:
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
            raise PrunekitError(f"table.keep must list ratios in (0, 1], not {keep!r}")
    for name in names:
        preset(name)  # raises for one that does not exist
    runs = Runs(
        load(config),
        gather(load_examples(config)),
        context.folder,
        data=data_name(config),
        batch_size=whole(config, "batch_size", 1),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        seeds=whole(config, "table.seeds", 1),
        resume=bool(config["resume"]),
    )
    write_results(compare(runs, names, keeps, config["variant"]), context.folder, table["file"])
