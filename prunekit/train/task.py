"""``task=train`` of the command line: a training run and the evaluation of what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit import ranks
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.models import LoadedModel
from prunekit.pruner import Pruner
from prunekit.tasks import Context, build_pruner, data_name, fit_budget, load, load_examples, whole
from prunekit.train.embedded import run_embedded
from prunekit.train.settings import Settings


def run(config: dict[str, Any], context: Context) -> None:
    """Train, print and draw the fusion's weights, evaluate."""
    if config["train"]["kind"] == "embedded":
        options = {key: value for key, value in config["train"].items() if key != "kind"}
        run_embedded(options, context.folder, bool(config["resume"]))
        return
    settings = Settings.parse(config["train"])
    seed, resume = whole(config, "seed", 0), bool(config["resume"])
    folder = context.folder
    pruner = training_pruner(config, settings)
    examples = training_examples(config, settings)
    loaded = load(config, fresh=True)
    if config["model"]["device_map"] is not None:
        raise PrunekitError("model.device_map spreads a model for inference; train it with accelerate launch")
    pruner = fit_budget(pruner, loaded, examples)
    name = f"{config['data']['name']}/{settings.split}"
    from prunekit.train.run import train

    trained = train(loaded, examples, pruner, settings, folder, data=name, seed=seed, resume=resume)
    report(config, context, trained, folder)


def training_pruner(config: dict[str, Any], settings: Settings) -> Pruner:
    """The configured pruner; training the fusion starts from weights that were asked for, never from shipped ones."""
    model = {key: value for key, value in config["model"].items() if key != "fusion_weights"}
    return build_pruner({**config, "model": model if settings.kind == "fusion" else config["model"]})


def training_examples(config: dict[str, Any], settings: Settings) -> list[Example]:
    """The examples to learn from: ``data`` with the split and limit of ``train``."""
    return load_examples({**config, "data": {**config["data"], "split": settings.split, "limit": settings.limit}})


def report(config: dict[str, Any], context: Context, trained: LoadedModel, folder: Path) -> None:
    """Evaluate the trained model under its pruner as it stands on disk, show the fusion's weights, tell W&B."""
    from prunekit.evaluation.pictures import draw_kept
    from prunekit.evaluation.run import evaluate
    from prunekit.evaluation.table import print_tables
    from prunekit.families import make_family
    from prunekit.tracking import log_run
    from prunekit.train.trainer import JOURNAL
    from prunekit.train.weights import show_weights

    pruner = Pruner.load(folder)
    pruner.name = config["preset"]
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
        )
        metrics = found.metrics
    if not ranks.is_first():
        return
    show_weights(folder, pruner, trained.model)
    if metrics:
        draw_kept(found.examples, found.rows, make_family(trained.model).grid, folder / "kept.png")
        print_tables(metrics)
    history = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    tags = [f"{kind}={choice}" for kind, choice in context.choices.items()]
    line = log_run(
        folder,
        config["logger"]["mode"],
        config=config,
        metrics=metrics,
        group=context.sweep,
        tags=tags,
        history=history,
        job_type="train",
    )
    print(f"files: {folder} ({', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))})")
    print(line)
