"""What the command line can do: each task takes the composed configuration as plain data."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError, check_choice
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


def load_examples(config: dict[str, Any]) -> list[Any]:
    """The examples that ``data`` names."""
    from prunekit.data.mini import ALL_SPLITS, load

    data = config["data"]
    check_choice("data.name", data["name"], ("mini",))
    check_choice("data.split", data["split"], ALL_SPLITS)
    limit = None if data["limit"] is None else whole(config, "data.limit", 1)
    return load(data["split"], limit)


@functools.lru_cache(maxsize=1)
def _cached_model(options: tuple[tuple[str, Any], ...]) -> Any:
    from prunekit.models import load_model

    return load_model(**dict(options))


def load(config: dict[str, Any], fresh: bool = False) -> Any:
    """The configured model; a sweep's jobs in one process share it, unless it is to be ``fresh``, for training."""
    model = {key: value for key, value in config["model"].items() if key != "fusion_weights"}
    if not isinstance(model["name"], str) or not model["name"]:
        raise PrunekitError(f"model.name must be a hub id or a local folder, not {model['name']!r}")
    if not isinstance(model["device_map"], str | None):
        raise PrunekitError(f"model.device_map must be a word like 'auto', not {model['device_map']!r}")
    options = {**model, **{key: config[key] for key in ("device", "dtype", "attn")}}
    made = tuple(sorted(options.items(), key=lambda item: item[0]))
    return _cached_model.__wrapped__(made) if fresh else _cached_model(made)


def data_name(config: dict[str, Any]) -> str:
    """Name of the data and its split, as metrics and caches use it."""
    return f"{config['data']['name']}/{config['data']['split']}"


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


def fit_budget(pruner: Pruner, loaded: Any, examples: list[Any]) -> Pruner:
    """For a budget: the pruner with its layers chosen for prompts like the first example's; prints what comes out."""
    if pruner.budget is None:
        return pruner
    from prunekit.evaluation.batches import Batcher
    from prunekit.families import make_family

    family = make_family(loaded.model)
    made = Batcher(loaded).inputs(examples[:1])
    visual = int(family.find_visual(made["input_ids"], made).sum())
    fitted = pruner.for_prompt(visual, made["input_ids"].shape[1] - visual)
    if (allotment := fitted.plan(family).allotment) is not None:
        print(allotment.describe())
    return fitted


def run_bench(config: dict[str, Any], context: Context) -> None:
    """``task=bench``: dense, pruned, ceiling and eager_fastv timed in turn; table, bench.json, bench.png."""
    from prunekit.bench.task import Settings, bench

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
        first_example=lambda: load_examples(config)[0],
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
    from prunekit.evaluation.layers import select_layer

    select_layer(
        load(config),
        load_examples(config),
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
        load_examples(config),
        context.folder,
        data=data_name(config),
        batch_size=whole(config, "batch_size", 1),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        seeds=whole(config, "table.seeds", 1),
        resume=bool(config["resume"]),
    )
    write_results(compare(runs, names, keeps, config["variant"]), context.folder, table["file"])


def run_train(config: dict[str, Any], context: Context) -> None:
    """``task=train``: fine-tuning under pruning; artifacts, training.jsonl, and the evaluation of what came out."""
    from prunekit.train.task import run

    run(config, context)


def run_study(config: dict[str, Any], context: Context) -> None:
    """``task=study``: learned fusion and sparse fine-tuning against no training; a table for docs/training.md."""
    from prunekit.train.study import run

    run(config, context)
