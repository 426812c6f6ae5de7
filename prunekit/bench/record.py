"""``bench.json`` as types: what a bench measures."""

from __future__ import annotations

from typing import NotRequired, TypedDict

Ratio = TypedDict("Ratio", {"median": float, "low": float, "high": float, "from": float, "to": float})
"""Of two contenders, round by round: the median, its quartiles ``low`` and ``high``, and its 95 % interval."""


class Spread(TypedDict):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


class Contender(TypedDict):
    """One contender on one workload; times in seconds, None where nothing was decoded or nothing is known."""

    prefill_s: Spread
    first_token_s: Spread
    token_s: Spread | None
    tokens_per_s: Spread | None
    activation_bytes: int
    device_peak_bytes: int | None
    kv_bytes: int
    flops_ratio: float
    prefill_ratio: Ratio
    token_ratio: Ratio | None
    efficiency: float | None
    over_ceiling: NotRequired[Ratio | None]
    token_over_ceiling: NotRequired[Ratio | None]


class Point(TypedDict):
    """One workload: its prompt, the cuts, and all contenders by name."""

    visual_tokens: int
    frames: int | None
    text_tokens: int
    batch_size: int
    new_tokens: int
    rounds: int
    cut_layers: list[int]
    tokens_per_layer: list[int]
    vision_s: Spread | None
    flops: dict[str, dict[str, float | None]]
    contenders: dict[str, Contender]
    notes: list[str]


class Machine(TypedDict):
    """Where and on what a bench ran."""

    device: str
    threads: int
    dtype: str
    torch: str
    parameters: int


class BenchRecord(Machine):
    """``bench.json``: the model, the method, and its points."""

    schema: int
    model: str
    shape: str | None
    attn: str
    method: dict[str, object]
    points: list[Point]
