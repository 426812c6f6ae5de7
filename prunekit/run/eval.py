"""``task=eval``: dense against pruned on the data; prints, draws and logs the finished run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prunekit import ranks
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.run.config import EvalConfig
from prunekit.run.context import Context
from prunekit.run.objects import (
    build_pruner,
    data_name,
    first_prompt,
    fit_budget,
    load,
    shared_batcher,
    shared_examples,
)

if TYPE_CHECKING:
    from prunekit.data.example import Example
    from prunekit.models import LoadedModel
    from prunekit.records.metrics import Metrics


def run(config: EvalConfig, context: Context) -> float | None:
    """``task=eval``: dense against pruned on the data; table, metrics.json, predictions.jsonl, kept.png, W&B.

    Returns:
        What a sweeper may optimise: the mean accuracy, or a number below any past ``sweep.objective.flops_limit``.
    """
    from prunekit.evaluation.other import with_evidence
    from prunekit.records.folder import Job
    from prunekit.records.identity import job_identity

    pruner, limit = build_pruner(config), config.sweep.objective.flops_limit
    job = Job(context.folder, job_identity(context.recorded, pruner.components.values()))
    if config.resume and (metrics := job.finished()) is not None:
        print(f"finished before: {context.folder} (accuracy {100 * metrics['accuracy']['mean']:.1f} %)")
        return metrics["accuracy"]["mean"]
    pruner, examples = with_evidence(config.eval.evidence, pruner, shared_examples(config))
    loaded = load(config)
    pruner = fit_budget(pruner, loaded, examples)
    if limit is not None and (flops := expected_flops(pruner, loaded, examples)) > limit:
        print(f"not run: {flops:.3f} of the dense prefill's FLOPs, more than sweep.objective.flops_limit={limit:g}")
        return limit - flops
    job.write(finished=False)
    metrics = _evaluate(config, context, pruner, loaded, examples)
    job.write(finished=True)
    return metrics["accuracy"]["mean"]


def _evaluate(
    config: EvalConfig, context: Context, pruner: Pruner, loaded: LoadedModel, examples: Iterable[Example]
) -> Metrics:
    """Run, print, draw and log one evaluation; its metrics."""
    from prunekit.evaluation.pictures import overlays
    from prunekit.evaluation.run import evaluate
    from prunekit.run.finished import show
    from prunekit.run.tracking import PICTURES, log_run

    evaluation = evaluate(
        loaded,
        examples,
        pruner,
        context.folder,
        data=data_name(config.data),
        max_new_tokens=config.data.max_new_tokens,
        resume=config.resume,
        overwrite=config.overwrite,
        batcher=shared_batcher(config),
        batch_size=config.batch_size,
        seed=config.seed,
    )
    if not ranks.is_first():
        return evaluation.metrics
    mode, sheets = config.logger.mode, show(config, evaluation, pruner, shared_batcher(config), context.folder)
    parts = {kind: component_name(component) for kind, component in pruner.components.items()}
    tags = [f"{kind}={choice}" for kind, choice in {**context.choices, **parts}.items()]
    line = log_run(
        context.folder,
        mode,
        config=context.recorded,
        metrics=evaluation.metrics,
        group=context.sweep,
        tags=tags,
        examples=[] if mode == "disabled" else overlays(evaluation.examples, evaluation.rows, sheets, PICTURES),
    )
    print(f"files: {context.folder} (metrics.json, predictions.jsonl, kept.npz, kept.png)\n{line}")
    return evaluation.metrics


def expected_flops(pruner: Pruner, loaded: LoadedModel, examples: Iterable[Example]) -> float:
    """``flops_ratio`` of a prompt like the first example's, by the cost meter: nothing is run."""
    from prunekit.cost import estimate, shape_of

    shape, (visual, text) = shape_of(loaded.model), first_prompt(loaded, examples)
    pruned, dense = (estimate(shape, p, visual=visual, text=text, convention="gated") for p in (pruner, None))
    return pruned.prefill / dense.prefill
