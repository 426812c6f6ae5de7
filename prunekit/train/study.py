"""``task=study`` (experiment=sparse_finetune): what learned fusion and sparse fine-tuning bring, against no training
and against the same fine-tuning without pruning. Every variant trains once for all keep ratios, on the train split, and
is evaluated on the same examples."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.configured import Context, build_pruner, data_name, load, load_examples, whole
from prunekit.data.example import Example
from prunekit.data.source import gather, source_name
from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.run import Evaluation, evaluate
from prunekit.files import put_between, write_json
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.results.statistics import accuracies, intervals
from prunekit.train.measure import score_spread
from prunekit.train.run import train
from prunekit.train.settings import Settings
from prunekit.train.study_table import render
from prunekit.train.task import check_apart, training_data
from prunekit.train.weights import show_weights


@dataclass(frozen=True)
class Variant:
    """One line of the table. ``train`` are the options in which its training differs, None for no training."""

    name: str
    label: str
    train: dict[str, Any] | None = None


@dataclass
class Found:
    """What a variant came to at one keep ratio."""

    variant: Variant
    keep: float
    correct: list[float]
    dense: list[float]
    spread: dict[str, float]
    seconds: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def variants(study: dict[str, Any]) -> list[Variant]:
    """No training, learned fusion, LoRA under pruning, with each λ of the study, and trained without pruning."""
    found = [
        Variant("none", "no training"),
        Variant("fusion", "learned fusion", {"kind": "fusion", **(study["fusion"] or {})}),
        Variant("lora", "LoRA, λ = 0", {"kind": "lora"}),
    ]
    for value in study["sparsity"]:
        found.append(Variant(f"lora-{value:g}", f"LoRA, λ = {value:g}", {"kind": "lora", "sparsity": float(value)}))
    found.append(Variant("dense", "LoRA, trained without pruning", {"kind": "lora", "keep_random": [1.0]}))
    for name, options in (study["more"] or {}).items():
        found.append(Variant(name, options.get("label", name), {k: v for k, v in options.items() if k != "label"}))
    names = [variant.name for variant in found]
    for name in study["skip"]:
        if name not in names[1:]:
            raise UnknownNameError("study.skip", name, names[1:])
    return [variant for variant in found if variant.name not in study["skip"]]


def run(config: dict[str, Any], context: Context) -> None:
    """Train what is not trained yet, evaluate, and write ``study.json`` and the table."""
    study = config["study"]
    if study is None:
        raise PrunekitError("task=study needs its options: experiment=sparse_finetune")
    examples, found = gather(load_examples(config)), []
    for variant in variants(study):
        print(f"== {variant.label}", flush=True)
        loaded, fusion, seconds = trained(variant, config, context.folder / variant.name)
        batcher = Batcher(loaded)
        for keep in study["keep"]:
            pruner = with_fusion(build_pruner({**config, "keep_ratio": float(keep)}), fusion)
            place = context.folder / variant.name / f"keep-{keep:g}"
            result = evaluation(config, batcher, examples, pruner, place)
            right, dense = ([float(row[name]) for row in result.rows] for name in ("correct", "dense_correct"))
            spread = score_spread(batcher, examples[: study["spread"]], pruner, whole(config, "batch_size", 1))
            found.append(Found(variant, float(keep), right, dense, spread, seconds))
        if fusion is not None:
            show_weights(context.folder / variant.name, pruner, loaded.model, study["picture"])
        write(config, context.folder, found, examples)  # what is done stands, whatever becomes of the rest
    print((context.folder / "study.md").read_text())


def write(config: dict[str, Any], folder: Path, found: list[Found], examples: list[Example]) -> None:
    """``study.json`` and the table, in the run folder and between the marks of the study's file."""
    study = config["study"]
    compare(found, examples)
    results = {
        "schema": 1,
        "data": data_name(config),
        "examples": len(examples),
        "train": {**config["train"], "keep_random": study["keep"]},
        "rows": [{**asdict(one), "correct": None, "dense": None} for one in found],
    }
    write_json(folder / "study.json", results)
    text = render(results)
    (folder / "study.md").write_text(text)
    if study["file"] is not None:
        put_between(Path(study["file"]), text, study["marks"])


def trained(variant: Variant, config: dict[str, Any], folder: Path) -> tuple[LoadedModel, str | None, float | None]:
    """The variant's model, the file of its fusion weights, and the seconds it trained; from disk if it is there."""
    if variant.train is None:
        return load(config), None, None
    options = {**config["train"], "keep_random": config["study"]["keep"], **variant.train}
    settings = replace(Settings.parse(options), evaluate=False)
    fusion = str(folder / "fusion.safetensors") if settings.kind == "fusion" else None
    loaded = load(config, fresh=True)
    data = training_data(config, settings)
    check_apart(data, config["data"])
    pruner = build_pruner({**config, "keep_ratio": float(config["study"]["keep"][0])})
    given = load_examples({**config, "data": data})
    how = {name: config[name] for name in ("seed", "resume", "overwrite")}
    made = train(loaded, given, pruner, settings, folder, data=source_name(data), **how)
    return made, fusion, _seconds(folder)


def with_fusion(pruner: Pruner, weights: str | None) -> Pruner:
    """The pruner with a learned fusion of these weights."""
    if weights is None:
        return pruner
    from prunekit.registry import registry

    return pruner.replace(fusion=registry.create("fusion", "learned", weights=weights))


def evaluation(
    config: dict[str, Any], batcher: Batcher, examples: list[Example], pruner: Pruner, folder: Path
) -> Evaluation:
    """The evaluation of a variant; under ``resume`` the answers that stand in ``folder`` are not given again."""
    return evaluate(
        batcher.loaded,
        examples,
        pruner,
        folder,
        data=data_name(config),
        seed=config["seed"],
        batch_size=whole(config, "batch_size", 1),
        max_new_tokens=whole(config, "data.max_new_tokens", 1),
        batcher=batcher,
        resume=bool(config["resume"]),
        overwrite=bool(config["overwrite"]),
    )


def compare(found: list[Found], examples: list[Example]) -> None:
    """Accuracies, and paired changes against the untrained model pruned as well (``gain``), against the untrained model
    dense (``change``), and against LoRA trained without pruning (``over_dense_training``)."""
    for one in found:
        at = {other.variant.name: other for other in found if other.keep == one.keep}
        values = {"accuracy": one.correct, "own_dense": one.dense}
        values["change"] = np.subtract(one.correct, at["none"].dense).tolist()
        if one.variant.train is not None:
            values["gain"] = np.subtract(one.correct, at["none"].correct).tolist()
        if "dense" in at and one.variant.train is not None and one.variant.name != "dense":
            values["over_dense_training"] = np.subtract(one.correct, at["dense"].correct).tolist()
        for name, numbers in values.items():
            one.numbers[name] = accuracies(examples, numbers)["mean"]
            one.numbers[f"{name}_ci"] = intervals(examples, numbers)["mean"]


def _seconds(folder: Path) -> float | None:
    """How long a training ran, by its journal."""
    lines = (folder / "training.jsonl").read_text().splitlines()
    return json.loads(lines[-1]).get("seconds") if lines else None
