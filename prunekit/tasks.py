"""What the command line can do: each task takes the composed configuration as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunekit import ranks
from prunekit.configured import (
    Context,
    build_pruner,
    data_name,
    first_prompt,
    fit_budget,
    load,
    load_examples,
    shared_batcher,
    shared_examples,
    whole,
)
from prunekit.errors import PrunekitError, check_choice
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.registry import registry


def run_eval(config: dict[str, Any], context: Context) -> float | None:
    """``task=eval``: dense against pruned on the data; table, metrics.json, predictions.jsonl, kept.png, W&B.

    Returns:
        What a sweeper may optimise: the mean accuracy, or a number below any where ``objective.flops_limit`` is passed.
    """
    from prunekit.evaluation.other import with_evidence
    from prunekit.records.folder import Job
    from prunekit.records.identity import job_identity
    from prunekit.tracking import MODES

    check_choice("logger.mode", config["logger"]["mode"], MODES)
    pruner, limit = build_pruner(config), flops_limit(config)
    job = Job(context.folder, job_identity(config, pruner.components.values()))
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
    from prunekit.families import make_family
    from prunekit.results.run_table import print_tables
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
    if config["table"]["spread"] is not None:
        from prunekit.train.measure import record_spread

        found.metrics = record_spread(config, context.folder, shared_batcher(config), found.examples, pruner)
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
    """``task=study``: the old word for a sweep over rows whose jobs train."""
    raise PrunekitError("a study is a sweep over rows: experiment=sparse_finetune, penalties or late_fusion alone")
