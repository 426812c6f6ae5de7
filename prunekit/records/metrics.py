"""``metrics.json`` as types: the figures of a finished run."""

from __future__ import annotations

from typing import TypedDict


class Method(TypedDict, total=False):
    """The components of a run by name, and how much they keep; ``layers`` are those that cuts stand before.

    ``draws`` and ``uses_regions`` are facts of the scorer's class, which a reader of the run may not have.
    """

    name: str | None
    scorer: str
    fusion: str
    schedule: str
    selector: str
    reducer: str
    positions: str
    keep_ratio: float | None
    keep_tokens: int
    budget: str
    layers: list[int]
    draws: bool
    uses_regions: bool


class Metrics(TypedDict, total=False):
    """Accuracies have an entry a task and "mean"; intervals are of 95 %; costs are pruned over dense."""

    schema: int
    method: Method
    model: str
    data: str
    seed: int
    metric: str
    examples: int
    errors: int
    examples_per_task: dict[str, int]
    accuracy: dict[str, float]
    accuracy_ci: dict[str, list[float] | None]
    dense_accuracy: dict[str, float]
    dense_accuracy_ci: dict[str, list[float] | None]
    change: dict[str, float]
    change_ci: dict[str, list[float] | None]
    tokens_per_layer: list[float]
    flops_formula: str
    flops_ratio: float
    flops_ratio_with_vision: float | None
    kv_ratio: float
    prefill_ratio: float
    prefill_ratio_includes_vision: bool
    extra: dict[str, float]
    dense_extra: dict[str, float]
    training_seconds: float | None
    spread: dict[str, float]
