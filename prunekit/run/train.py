"""``task=train`` of the command line: a training run and the evaluation of what came out.

Jobs of a sweep over rows may share a training (``train.shared``): it stands in their row's folder, the evaluations in
their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit import ranks
from prunekit.data.source import same_rows
from prunekit.errors import PrunekitError
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.records.folder import TRAINING, add_metrics
from prunekit.records.lock import claimed
from prunekit.records.metrics import Metrics
from prunekit.records.sweep import ERROR, PLAN, plan_entry
from prunekit.run.config import DataOptions, TrainConfig
from prunekit.run.context import Context
from prunekit.run.objects import build_pruner, data_name, fit_budget, load, load_examples
from prunekit.run.tracking import log_run
from prunekit.train.embedded import EmbeddedOptions, run_embedded
from prunekit.train.settings import JOURNAL, Settings


def run(config: TrainConfig, context: Context) -> None:
    """Train, print and draw the fusion's weights, evaluate."""
    settings = config.train
    if isinstance(settings, EmbeddedOptions):
        run_embedded(settings, context.folder, config.resume)
        return
    if config.model.quantization is not None:
        raise PrunekitError("model.quantization: quantised weights are not trained; quantise the trained model")
    folder = training_folder(context.folder, settings)
    data = training_data(config, settings)
    check_evaluation(config, settings, data)
    pruner = training_pruner(config, settings)
    examples = load_examples(config, data)
    loaded = load(config, fresh=True)
    if config.model.device_map is not None:
        raise PrunekitError("model.device_map spreads a model for inference; train it with accelerate launch")
    pruner = fit_budget(pruner, loaded, examples)
    from prunekit.train.run import train

    with claimed(folder, wait=settings.shared):
        before = _changed_at(folder / JOURNAL)
        how: dict[str, Any] = {"resume": config.resume, "overwrite": config.overwrite}
        if settings.shared:  # a row's first job trains, the others read what it left
            how["overwrite"] = how["overwrite"] and not _trained_in_this_sweep(context.folder, folder)
            how["resume"] = not how["overwrite"]
        try:
            trained = train(loaded, examples, pruner, settings, folder, data=data_name(data), seed=config.seed, **how)
        except Exception:
            if ranks.is_first() and _changed_at(folder / JOURNAL) != before:  # what a stopped training went through
                print(log(config, context, folder, {}))
            raise
    report(config, context, settings, trained, folder)


def training_folder(folder: Path, settings: Settings) -> Path:
    """Where the training stands: in the run folder, or in that of the row whose jobs share it."""
    entry = plan_entry(folder) if settings.shared else None
    return folder if entry is None else entry[0] / Path(entry[1]["folder"]).parts[0]


def _trained_in_this_sweep(folder: Path, training: Path) -> bool:
    """Whether the training was finished after the sweep around a job's folder was planned."""
    entry, done = plan_entry(folder), _changed_at(training / TRAINING.result)
    return entry is not None and done is not None and done >= (entry[0] / PLAN).stat().st_mtime_ns


def _changed_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def training_pruner(config: TrainConfig, settings: Settings) -> Pruner:
    """The configured pruner; training the fusion starts from weights that were asked for, never from shipped ones. One
    for several keep ratios is the same whichever of them a job evaluates."""
    if settings.shared:
        config = config.model_copy(update={"keep_ratio": settings.keep_random[0]})
    if settings.kind == "fusion":
        config = config.model_copy(update={"model": config.model.model_copy(update={"fusion_weights": None})})
    return build_pruner(config)


def training_data(config: TrainConfig, settings: Settings) -> DataOptions:
    """The data to learn from: ``data`` with the split, limit and path of ``train``."""
    path = {} if settings.path is None else {"path": settings.path}
    options: dict[str, Any] = {**config.data.opened(), "split": settings.split, "limit": settings.limit, **path}
    return DataOptions(**options)


def check_evaluation(config: TrainConfig, settings: Settings, data: DataOptions) -> None:
    """What the evaluation needs is wrong before the training, not after it.

    Raises:
        PrunekitError: for options that do not fit, and an evaluation on the rows that were learned from.
    """
    if not settings.evaluate:
        return
    check_apart(data, config.data)
    load_examples(config)


def check_apart(learned: DataOptions, evaluated: DataOptions) -> None:
    """Raise if what is learned from is what is evaluated on."""
    if same_rows(learned.opened(), evaluated.opened()):
        raise PrunekitError(
            f"train: '{data_name(learned)}' would be learned from and evaluated on: train.path and train.split say "
            "what to learn from, train.evaluate=false leaves the evaluation out"
        )


def report(config: TrainConfig, context: Context, settings: Settings, trained: LoadedModel, training: Path) -> None:
    """Evaluate the trained model under its pruner as it stands on disk, show the fusion's weights, tell W&B."""
    from prunekit.evaluation.batches import Batcher
    from prunekit.evaluation.run import evaluate
    from prunekit.run.finished import show
    from prunekit.train.weights import show_weights

    folder, pruner = context.folder, Pruner.load(training).replace(name=config.preset)
    if settings.shared:
        pruner = pruner.replace(keep_ratio=build_pruner(config).keep_ratio)
    batcher = Batcher(trained)
    metrics: Metrics = {}
    if settings.evaluate:
        evaluation = evaluate(
            trained,
            load_examples(config),
            pruner,
            folder,
            data=data_name(config.data),
            seed=config.seed,
            batch_size=config.batch_size,
            max_new_tokens=config.data.max_new_tokens,
            batcher=batcher,
            resume=settings.shared and config.resume,
            overwrite=not settings.shared or config.overwrite,  # what an earlier training in this folder came to
        )
        metrics = evaluation.metrics
    if not ranks.is_first():
        return
    show_weights(training, pruner, trained.model, config.sweep.table.picture)
    if metrics:
        seconds = [row["seconds"] for row in _history(training) if "seconds" in row]
        evaluation.metrics = add_metrics(folder, training_seconds=seconds[-1] if seconds else None)
        show(config, evaluation, pruner, batcher, folder)
        metrics = evaluation.metrics
    line = log(config, context, training, metrics)
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != ERROR)
    print(f"files: {folder} ({', '.join(names)})")
    print(line)


def _history(training: Path) -> list[dict[str, Any]]:
    """Losses by step, as the training's journal has them."""
    return [json.loads(line) for line in (training / JOURNAL).read_text().splitlines()]


def log(config: TrainConfig, context: Context, training: Path, metrics: Metrics) -> str:
    """Tell W&B of the losses by step and of the evaluation; the line to show."""
    return log_run(
        context.folder,
        config.logger.mode,
        config=context.recorded,
        metrics=metrics,
        group=context.sweep,
        tags=[f"{kind}={choice}" for kind, choice in context.choices.items()],
        history=_history(training),
        job_type="train",
    )
