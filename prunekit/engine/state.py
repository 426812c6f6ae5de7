"""What one prefill remembers: made when it starts, gone when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.engine.layout import Layout, Stage, on_device, take
from prunekit.engine.view import LayerView


@dataclass(frozen=True)
class CutRecord:
    """One cut as it happened.

    Attributes:
        site: "vision", "input" or "decoder".
        layer: the decoder layer before which the tokens went.
        kept: visual tokens that stay after it, cumulative, bool [B, N] in sequence order, padded with False.
        scores: float [B, N], NaN where a token was already gone or pads.
    """

    site: str
    layer: int
    kept: torch.Tensor
    scores: torch.Tensor


@dataclass
class Trace:
    """What a pruner did in the latest prefill.

    Attributes:
        cuts: the cuts in order.
        tokens_per_layer: real tokens that each decoder layer processed, long [layers, B].
    """

    cuts: list[CutRecord] = field(default_factory=list)
    tokens_per_layer: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))


@dataclass
class Prefill:
    """State of one prefill, from the model's first layer to its last."""

    layout: Layout
    stage: Stage
    kept: torch.Tensor
    slots: torch.Tensor
    cuts: list[CutRecord] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    views: dict[int, LayerView] = field(default_factory=dict)
    hidden: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    cut_slots: torch.Tensor | None = None
    memo: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, layout: Layout) -> Prefill:
        """The dense start: everything stands."""
        return cls(layout, Stage(0, None, None, layout.lengths), layout.exists, layout.visual_index)

    def view(self, layer: int, hidden: torch.Tensor, grid: tuple[int, int] | None) -> LayerView:
        """What a scorer sees of ``layer`` now."""
        return LayerView(hidden, layer, self.layout, self.stage, self.kept, self.slots, grid, memo=self.memo)

    def removed(self, stage: Stage) -> torch.Tensor:
        """How many real tokens of each sample are missing in a stage, [B]; made once for all of its layers."""
        key = ("removed", stage.number)
        if key not in self.memo:
            gone = [dense - now for dense, now in zip(self.layout.lengths, stage.lengths, strict=True)]
            self.memo[key] = (None, on_device(gone, self.layout.real.device))
        return self.memo[key][1]

    def shorten(self, kept: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Go to the next stage, where of the visual tokens only ``kept`` [B, N] stands: surviving slots [B, M]."""
        layout, stage = self.layout, self.stage
        dropped = (layout.exists & ~kept).to(torch.uint8)
        goes = torch.zeros_like(layout.visual, dtype=torch.uint8).scatter_add(1, layout.visual_index, dropped)
        stays = layout.present & ~goes.bool()
        if stage.index is not None:
            stays = stays.gather(1, stage.index)
        if stage.valid is not None:
            stays = stays & stage.valid
        slots, self.stage = stage.compact(stays, lengths, layout.extra)
        self.kept, self.cut_slots = kept, slots
        # The new slot of an old one: how many slots before it stay, after the padding.
        rank = stays.cumsum(1) - 1 + slots.shape[1] - stays.sum(1, keepdim=True)
        self.slots = rank.clamp(min=0).gather(1, self.slots).masked_fill(~kept, 0)
        return slots


def gather_argument(name: str, value: Any, index: torch.Tensor, size: int) -> Any:
    """A per-token keyword of a decoder layer, at the dense positions ``index`` [B, M]; others pass unchanged.

    ``position_embeddings`` hold tokens on their second last axis, ``position_ids`` on their last, anything else that
    has [B or 1, S, ...] on its second. A batch axis of 1 is expanded.
    """
    if isinstance(value, tuple | list):
        return type(value)(gather_argument(name, v, index, size) for v in value)
    if isinstance(value, dict):
        return {key: gather_argument(name, v, index, size) for key, v in value.items()}
    if not isinstance(value, torch.Tensor) or value.ndim < 2:
        return value
    axis = {"position_embeddings": value.ndim - 2, "position_ids": value.ndim - 1}.get(name, 1)
    if value.shape[axis] != size or value.shape[axis - 1] not in (1, index.shape[0]):
        return value
    shape = list(value.shape)
    shape[axis - 1] = index.shape[0]
    return take(value.expand(shape), index, axis)
