"""``task=train`` of the command line: a training run and the evaluation of what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit import ranks
from prunekit.configured import Context, build_pruner, data_name, fit_budget, load, load_examples, whole
from prunekit.data.source import same_rows, source_name
from prunekit.errors import PrunekitError, check_choice
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.tracking import MODES, log_run
from prunekit.train.embedded import run_embedded
from prunekit.train.settings import JOURNAL, Settings


def run(config: dict[str, Any], context: Context) -> None:
    """Train, print and draw the fusion's weights, evaluate."""
    if config["train"]["kind"] == "embedded":
        options = {key: value for key, value in config["train"].items() if key != "kind"}
        run_embedded(options, context.folder, bool(config["resume"]))
        return
    settings = Settings.parse(config["train"])
    seed, resume = whole(config, "seed", 0), bool(config["resume"])
    folder = context.folder
    data = training_data(config, settings)
    check_evaluation(config, settings, data)
    pruner = training_pruner(config, settings)
    examples = load_examples({**config, "data": data})
    loaded = load(config, fresh=True)
    if config["model"]["device_map"] is not None:
        raise PrunekitError("model.device_map spreads a model for inference; train it with accelerate launch")
    pruner = fit_budget(pruner, loaded, examples)
    from prunekit.train.run import train

    before = _changed_at(folder / JOURNAL)
    try:
        how: dict[str, Any] = {"seed": seed, "resume": resume, "overwrite": bool(config["overwrite"])}
        trained = train(loaded, examples, pruner, settings, folder, data=source_name(data), **how)
    except Exception:
        if ranks.is_first() and _changed_at(folder / JOURNAL) != before:  # what a training that stopped went through
            print(log(config, context, {}))
        raise
    report(config, context, trained, folder)


def _changed_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def training_pruner(config: dict[str, Any], settings: Settings) -> Pruner:
    """The configured pruner; training the fusion starts from weights that were asked for, never from shipped ones."""
    model = {key: value for key, value in config["model"].items() if key != "fusion_weights"}
    return build_pruner({**config, "model": model if settings.kind == "fusion" else config["model"]})


def training_data(config: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The data to learn from: ``data`` with the split, limit and path of ``train``."""
    path = {} if settings.path is None else {"path": settings.path}
    return {**config["data"], "split": settings.split, "limit": settings.limit, **path}


def check_evaluation(config: dict[str, Any], settings: Settings, data: dict[str, Any]) -> None:
    """What the evaluation needs is wrong before the training, not after it.

    Raises:
        PrunekitError: for options that do not fit, and an evaluation on the rows that were learned from.
    """
    check_choice("logger.mode", config["logger"]["mode"], MODES)
    if not settings.evaluate:
        return
    whole(config, "batch_size", 1)
    whole(config, "data.max_new_tokens", 1)
    check_apart(data, config["data"])
    load_examples(config)


def check_apart(learned: dict[str, Any], evaluated: dict[str, Any]) -> None:
    """Raise if what is learned from is what is evaluated on."""
    if same_rows(learned, evaluated):
        raise PrunekitError(
            f"train: '{source_name(learned)}' would be learned from and evaluated on: train.path and train.split say "
            "what to learn from, train.evaluate=false leaves the evaluation out"
        )


def report(config: dict[str, Any], context: Context, trained: LoadedModel, folder: Path) -> None:
    """Evaluate the trained model under its pruner as it stands on disk, show the fusion's weights, tell W&B."""
    from prunekit.evaluation.pictures import draw_kept
    from prunekit.evaluation.run import evaluate
    from prunekit.families import make_family
    from prunekit.results.run_table import print_tables
    from prunekit.train.weights import show_weights

    pruner = Pruner.load(folder).replace(name=config["preset"])
    metrics: dict[str, Any] = {}
    if config["train"]["evaluate"]:
        found = evaluate(
            trained,
            load_examples(config),
            pruner,
            folder,
            data=data_name(config),
            seed=config["seed"],
            batch_size=whole(config, "batch_size", 1),
            max_new_tokens=whole(config, "data.max_new_tokens", 1),
            overwrite=True,  # what an earlier training in this folder came to
        )
        metrics = found.metrics
    if not ranks.is_first():
        return
    show_weights(folder, pruner, trained.model)
    if metrics:
        draw_kept(found.examples, found.rows, make_family(trained.model).grid, folder / "kept.png")
        print_tables(metrics)
    line = log(config, context, metrics)
    print(f"files: {folder} ({', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))})")
    print(line)


def log(config: dict[str, Any], context: Context, metrics: dict[str, Any]) -> str:
    """Tell W&B of the losses by step and of the evaluation; the line to show."""
    history = [json.loads(line) for line in (context.folder / JOURNAL).read_text().splitlines()]
    return log_run(
        context.folder,
        config["logger"]["mode"],
        config=config,
        metrics=metrics,
        group=context.sweep,
        tags=[f"{kind}={choice}" for kind, choice in context.choices.items()],
        history=history,
        job_type="train",
    )
