"""One evaluation: dense and pruned answers to the same examples, metrics, and the files of the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from prunekit.cost import prefill_cost, vision_macs
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.answers import Answer, DenseCache, answer_all, regions_for
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.kept import FILE as KEPT
from prunekit.evaluation.kept import record_kept
from prunekit.evaluation.statistics import accuracies, intervals, is_correct
from prunekit.evaluation.timing import prefill_ratio
from prunekit.evaluation.vision_cost import with_encoder_saving
from prunekit.families import Family, make_family
from prunekit.models import LoadedModel
from prunekit.pruner import Pruner, component_name

SCHEMA = 1
OUTPUTS = ("predictions.jsonl", "metrics.json", "kept.png", KEPT)
SIGNATURE = "run.json"
"""What a run was of: a run of another configuration must not be resumed into it."""

TIMED_BATCH = 8


@dataclass
class Evaluation:
    """What a run found: ``metrics`` as metrics.json holds them, ``rows`` as predictions.jsonl does, by example."""

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    examples: list[Example]


def evaluate(
    loaded: LoadedModel,
    examples: Sequence[Example],
    pruner: Pruner,
    folder: Path,
    *,
    data: str = "mini",
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 8,
    resume: bool = False,
    batcher: Batcher | None = None,
) -> Evaluation:
    """Evaluate ``pruner`` against the dense model and write ``metrics.json`` and ``predictions.jsonl`` to ``folder``.

    Dense answers are kept by content and not computed twice. With ``resume`` the predictions already in the folder
    stand, if they are of the same method. Runs that share a ``batcher`` encode each image once.
    """
    if not examples:
        raise PrunekitError(f"data '{data}': no examples")
    handle = pruner.apply(loaded.model)  # what the model cannot do is said before any work is done
    handle.remove()
    regions_for(pruner, examples)  # and so is what the data does not know
    layers, family = handle.plan.cut_layers, make_family(loaded.model)
    batcher = batcher or Batcher(loaded)
    vision = _vision_macs(batcher, family, examples)
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    signature = sign(loaded, pruner, data, max_new_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    done = _resumed(folder, signature) if resume else {}
    for name in OUTPUTS if not resume else ():  # of an earlier run: they must not pass for this one's
        (folder / name).unlink(missing_ok=True)
    write_json(folder / SIGNATURE, signature)
    dense = _dense_answers(batcher, examples, options)
    rows = _pruned_rows(batcher, examples, pruner, dense, folder, done, options)
    ordered = [rows[e.id] for e in examples]
    if not (folder / KEPT).exists():
        record_kept(batcher, (e for e in examples if "error" not in rows[e.id]), pruner, folder / KEPT)
    metrics = {
        "schema": SCHEMA,
        "method": _method(pruner, layers),
        "model": loaded.name,
        "data": data,
        "seed": seed,
        "examples": len(examples),
        **_accuracy(examples, ordered),
        **_cost(family, ordered, vision),
        "prefill_ratio": _prefill_ratio(batcher, examples, pruner),
        "prefill_ratio_includes_vision": not batcher.shares(pruner),
    }
    write_json(folder / "metrics.json", metrics)
    return Evaluation(metrics, ordered, list(examples))


def sign(loaded: LoadedModel, pruner: Pruner, data: str, max_new_tokens: int) -> dict[str, Any]:
    """What a run is of, as ``run.json`` holds it."""
    return {**pruner.describe(), "model": loaded.fingerprint, "data": data, "max_new_tokens": max_new_tokens}


def holds(folder: Path, signature: dict[str, Any]) -> bool:
    """Whether ``folder`` has a run of this signature, finished or not."""
    signed = folder / SIGNATURE
    return signed.exists() and json.loads(signed.read_text()) == json.loads(json.dumps(signature))


def finished(folder: Path, signature: dict[str, Any], examples: Sequence[Example]) -> Evaluation | None:
    """The run in ``folder`` if it is whole, of this ``signature`` and of just these examples; else None."""
    if not holds(folder, signature) or not (folder / "metrics.json").exists():
        return None
    rows = _resumed(folder, signature)
    metrics = json.loads((folder / "metrics.json").read_text())
    if metrics["examples"] != len(examples) or any(e.id not in rows for e in examples):
        return None
    return Evaluation(metrics, [rows[e.id] for e in examples], list(examples))


def write_json(path: Path, data: Any) -> None:
    """Write whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def _dense_answers(batcher: Batcher, examples: Sequence[Example], options: dict[str, int]) -> dict[str, str]:
    cache = DenseCache(batcher.loaded.fingerprint, options["max_new_tokens"])
    found = {e.id: text for e in examples if (text := cache.get(e)) is not None}
    missing = [e for e in examples if e.id not in found]
    if missing:
        with tqdm(total=len(missing), desc="dense ", unit="ex", dynamic_ncols=True) as bar:
            for example, answer in answer_all(batcher, missing, None, progress=bar.update, **options):
                cache.add(example, answer.text)
                found[example.id] = answer.text
    return found


def _pruned_rows(
    batcher: Batcher,
    examples: Sequence[Example],
    pruner: Pruner,
    dense: dict[str, str],
    folder: Path,
    rows: dict[str, dict[str, Any]],
    options: dict[str, int],
) -> dict[str, dict[str, Any]]:
    """``rows`` of predictions.jsonl by id, completed; each is written as soon as its batch is done."""
    path = folder / "predictions.jsonl"
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    part.replace(path)
    todo = [e for e in examples if e.id not in rows]
    with path.open("a") as file, tqdm(total=len(todo), desc="pruned", unit="ex", dynamic_ncols=True) as bar:
        for example, answer in answer_all(batcher, todo, pruner, progress=bar.update, **options):
            rows[example.id] = _row(example, answer, dense[example.id])
            file.write(json.dumps(rows[example.id]) + "\n")
            file.flush()
    return rows


def _resumed(folder: Path, signature: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Finished rows of an interrupted run; a half-written last line is dropped, another configuration is an error."""
    path = folder / "predictions.jsonl"
    if not path.exists() or not (folder / SIGNATURE).exists():
        return {}
    if not holds(folder, signature):
        raise PrunekitError(f"resume: '{folder}' holds a run of another configuration")
    rows = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["id"]] = row
    return rows


def _row(example: Example, answer: Answer, dense: str) -> dict[str, Any]:
    return {
        "id": example.id,
        "image_id": example.image_id,
        "task": example.task,
        "question": example.question,
        "answers": list(example.answers),
        "prediction": answer.text,
        "dense_prediction": dense,
        "correct": is_correct(example, answer.text),
        "dense_correct": is_correct(example, dense),
        "kept": answer.kept,
        "prompt_tokens": answer.prompt_tokens,
        "tokens_per_layer": answer.tokens,
        **({} if answer.vision is None else {"vision_tokens": answer.vision}),
    }


def _method(pruner: Pruner, layers: Sequence[int]) -> dict[str, Any]:
    names = {kind: component_name(component) for kind, component in pruner.components.items()}
    budget = {"keep_ratio": pruner.keep_ratio, **pruner.kept_share}
    return {"name": pruner.name, **names, "positions": pruner.positions, **budget, "layers": list(layers)}


def _accuracy(examples: Sequence[Example], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pruned = [float(row["correct"]) for row in rows]
    dense = [float(row["dense_correct"]) for row in rows]
    change = [p - d for p, d in zip(pruned, dense, strict=True)]
    return {
        "accuracy": accuracies(examples, pruned),
        "accuracy_ci": intervals(examples, pruned),
        "dense_accuracy": accuracies(examples, dense),
        "dense_accuracy_ci": intervals(examples, dense),
        "change": accuracies(examples, change),
        "change_ci": intervals(examples, change),
        "examples_per_task": {t: sum(e.task == t for e in examples) for t in sorted({e.task for e in examples})},
    }


def _vision_macs(batcher: Batcher, family: Family, examples: Sequence[Example]) -> float | None:
    """MACs of the vision encoder for one image. Those of a data set differ in size with some families only; there the
    first stands for all."""
    image_processor = getattr(batcher.loaded.processor, "image_processor", None)
    if image_processor is None:
        return None
    return vision_macs(family, image_processor(images=[examples[0].image()], return_tensors="pt"))


def _cost(family: Family, rows: Sequence[dict[str, Any]], vision: float | None) -> dict[str, Any]:
    tokens = torch.tensor([row["tokens_per_layer"] for row in rows]).T
    prompt = torch.tensor([row["prompt_tokens"] for row in rows])
    encoders = None if vision is None else vision * len(rows)
    cost = prefill_cost(family, tokens, prompt, encoders)
    return {
        "tokens_per_layer": tokens.double().mean(1).tolist(),
        "flops_formula": "gated",
        "flops_ratio": cost.flops_ratio,
        "flops_ratio_with_vision": with_encoder_saving(cost, family, list(rows), encoders),
        "kv_ratio": cost.kv_ratio,
    }


def _prefill_ratio(batcher: Batcher, examples: Sequence[Example], pruner: Pruner) -> float:
    # The shortest prompts: there are enough of one length, so that nothing of the batch is padding.
    batch = next(batcher.batches(examples, TIMED_BATCH))
    inputs = batcher.inputs(batch, pruner)
    return prefill_ratio(batcher.loaded.model, pruner, inputs, regions=regions_for(pruner, batch))
