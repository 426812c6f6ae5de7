"""Adaptive choice of the cut's layer: accuracy and cost of a one-shot cut at every layer, and a recommendation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from rich.markup import escape

from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.run import evaluate
from prunekit.families import make_family
from prunekit.files import write_json
from prunekit.models import LoadedModel
from prunekit.pruning.pruner import Pruner
from prunekit.results.numbers import ratio, with_interval
from prunekit.results.screen import screen_table, show

TOLERANCE = 0.02
"""Accuracy below dense that a recommended layer may cost."""


class LayerRow(TypedDict):
    """One cut layer: mean accuracy and its change from dense, with intervals, and costs over dense."""

    layer: int
    accuracy: float
    accuracy_ci: list[float] | None
    change: float
    change_ci: list[float] | None
    flops_ratio: float
    kv_ratio: float
    prefill_ratio: float


class LayerSelection(TypedDict):
    """``layer_selection.json``."""

    model: str
    data: str
    examples: int
    dense_accuracy: float
    tolerance: float
    recommended_layer: int
    within_tolerance: bool
    layers: list[LayerRow]


def select_layer(
    loaded: LoadedModel,
    examples: Sequence[Example],
    make_pruner: Callable[[int], Pruner],
    folder: Path,
    *,
    data: str,
    batch_size: int,
    max_new_tokens: int,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> LayerSelection:
    """Evaluate ``make_pruner(layer)`` for every layer from 1 on; print a table, write ``layer_selection.json``.

    Recommended is the cheapest (earliest) cut whose mean accuracy is at most ``TOLERANCE`` below dense; if there is
    none, the layer of the best accuracy. Meant for a validation split: the choice is made on the data it is given.
    """
    rows: list[LayerRow] = []
    depth = make_family(loaded.model).depth
    if depth < 2:
        raise PrunekitError(f"model '{loaded.name}' has {depth} decoder layer: there is no layer to choose")
    for layer in range(1, depth):
        metrics = evaluate(
            loaded,
            examples,
            make_pruner(layer),
            folder / f"layer_{layer:02d}",
            data=data,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
        ).metrics
        rows.append(
            {
                "layer": layer,
                "accuracy": metrics["accuracy"]["mean"],
                "accuracy_ci": metrics["accuracy_ci"]["mean"],
                "change": metrics["change"]["mean"],
                "change_ci": metrics["change_ci"]["mean"],
                "flops_ratio": metrics["flops_ratio"],
                "kv_ratio": metrics["kv_ratio"],
                "prefill_ratio": metrics["prefill_ratio"],
            }
        )
    good = [row for row in rows if row["change"] >= -TOLERANCE]
    chosen = good[0] if good else max(rows, key=lambda row: row["accuracy"])
    result: LayerSelection = {
        "model": loaded.name,
        "data": data,
        "examples": len(examples),
        "dense_accuracy": metrics["dense_accuracy"]["mean"],
        "tolerance": TOLERANCE,
        "recommended_layer": chosen["layer"],
        "within_tolerance": bool(good),
        "layers": rows,
    }
    write_json(folder / "layer_selection.json", result)
    _print(result, folder)
    return result


def _print(result: LayerSelection, folder: Path) -> None:
    title = (
        f"{result['model']} on {result['data']}: cut before each layer, dense {100 * result['dense_accuracy']:.1f} %"
    )
    headings = ("layer", "accuracy %", "change (paired)", "FLOPs", "KV", "prefill time")
    table = screen_table(title, headings, (), align="r")
    for row in result["layers"]:
        change = with_interval(row["change"], row["change_ci"], signed=True)
        table.add_row(
            str(row["layer"]),
            f"{100 * row['accuracy']:.1f}",
            escape(change),
            *(ratio(cost) for cost in (row["flops_ratio"], row["kv_ratio"], row["prefill_ratio"])),
            style="bold" if row["layer"] == result["recommended_layer"] else None,
        )
    show(table, width=110)
    if result["within_tolerance"]:
        why = f"the earliest at most {100 * result['tolerance']:.0f} points below dense"
    else:
        why = f"the most accurate; none is within {100 * result['tolerance']:.0f} points of dense"
    print(f"recommended: schedule=one_shot schedule.layer={result['recommended_layer']} ({why})")
    print(f"files: {folder} (layer_selection.json)")
