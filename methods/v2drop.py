"""V²Drop: tokens that the layers hardly change go, in three cuts; with the fusion ``variation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import prunekit

CUTS = (3, 17, 22)
"""The authors' layers, of 32."""


@prunekit.register("scorer", "v2drop")
@dataclass
class HiddenNorm(prunekit.Scorer):
    """‖h‖₂ of the hidden state that enters a layer; with fusion ``variation`` the norm of what the layer before changed
    of it. Variation-aware Vision Token Dropping for Faster Large Vision-Language Models (CVPR 2026,
    https://arxiv.org/abs/2509.01552)."""

    def score(self, view) -> torch.Tensor:
        return view.visual(view.hidden_states).float().norm(dim=-1)


@prunekit.register("fusion", "variation")
@dataclass
class Variation(prunekit.Fusion):
    """‖h_l − h_{l−1}‖₂ of what enters the cut layer and the layer before it; the scorer says nothing of its own."""

    uses_next_layer, joins_rows = True, False

    def layers(self, cut: int, previous: int) -> list[int]:
        return [cut - 1, cut] if cut else []

    def fuse_views(self, views: Sequence, scorer: prunekit.Scorer) -> torch.Tensor:
        before, after = (view.visual(view.hidden_states).float() for view in views)
        return (after - before.to(after.device)).norm(dim=-1)


@prunekit.register("schedule", "v2drop")
@dataclass
class V2DropSchedule(prunekit.Schedule):
    """Cuts before layers 3, 17 and 22 of 32 (the same fractions of other depths): half of the tokens, half of these,
    then all but the budget.

    Args:
        variant: "code" (default) leaves what the budget says at the end, at least one token: ``keep_tokens=1`` is the
            authors' code. "paper" withdraws the rest: no token stays.
    """

    variant: str = "code"

    def __post_init__(self) -> None:
        prunekit.check_choice("schedule.variant", self.variant, ("code", "paper"))

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        layers = CUTS if depth == 32 else [max(1, round(layer * depth / 32)) for layer in CUTS]
        if len({*layers}) < 3 or layers[-1] >= depth:
            raise prunekit.PrunekitError(f"schedule 'v2drop': a decoder of {depth} layers has no place for three cuts")
        last = 0.0 if self.variant == "paper" else keep_ratio
        shares = (max(0.5, last), max(0.25, last), last)
        return tuple(map(prunekit.Cut, layers, shares))

    def own_ratio(self) -> float | None:
        return 0.0 if self.variant == "paper" else None


prunekit.compose("v2drop", scorer="v2drop", fusion="variation", schedule="v2drop", positions="keep")
