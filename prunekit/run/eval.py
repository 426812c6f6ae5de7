"""``task=eval``: dense against pruned on the data; prints, draws and logs the finished run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunekit import ranks
from prunekit.errors import PrunekitError, check_choice
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.run.context import Context
from prunekit.run.objects import (
    build_pruner,
    data_name,
    first_prompt,
    fit_budget,
    load,
    shared_batcher,
    shared_examples,
    whole,
)


def run(config: dict[str, Any], context: Context) -> float | None:
    """``task=eval``: dense against pruned on the data; table, metrics.json, predictions.jsonl, kept.png, W&B.

    Returns:
        What a sweeper may optimise: the mean accuracy, or a number below any where ``objective.flops_limit`` is passed.
    """
    from prunekit.evaluation.other import with_evidence
    from prunekit.records.folder import Job
    from prunekit.records.identity import job_identity
    from prunekit.run.tracking import MODES

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
    from prunekit.run.tracking import PICTURES, log_run

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

        found.metrics = record_spread(
            context.folder,
            shared_batcher(config),
            found.examples,
            pruner,
            count=whole(config, "table.spread", 1),
            batch_size=sizes["batch_size"],
        )
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
