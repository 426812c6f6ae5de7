"""What layers say about the visual tokens, until the cuts that need it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.components.base import Scorer
from prunekit.engine.answers import ask, check_answer
from prunekit.engine.plan import Parts
from prunekit.views.layer import View


def score(scorer: Scorer, view: Any) -> torch.Tensor:
    """A scorer's scores of one layer, float32 [B, N]."""
    scores_BN = ask(scorer, "score", view, lambda: scorer.score(view))
    return check_answer(scorer, "score", view, scores_BN, view.alive.shape).float()


@dataclass
class Evidence:
    """The evidence of one forward pass, by layer (in an encoder by block).

    Attributes:
        scores: float32 [B, N] each, for fusions of scores.
        views: the layers themselves, for fusions that need full attention and selectors that adapt the count.
    """

    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    views: dict[int, View] = field(default_factory=dict)

    def __contains__(self, layer: int) -> bool:
        return layer in self.scores or layer in self.views

    def add(self, parts: Parts, view: View) -> None:
        """Take the evidence of a layer."""
        if parts.fusion.needs_full_attention or view.layer in parts.counted_layers:
            self.views[view.layer] = view
        if not parts.fusion.needs_full_attention:
            self.scores[view.layer] = score(parts.scorer, view)

    def fuse(self, parts: Parts, layers: Sequence[int], view: Any) -> torch.Tensor:
        """Scores [B, N] of several layers together; without any those of ``view``, the layer of the cut itself."""
        fusion, layers = parts.fusion, list(layers)
        if fusion.needs_full_attention:
            views: list[Any] = [self.views[layer] for layer in layers]
            scores_BN = ask(fusion, "fuse_views", view, lambda: fusion.fuse_views(views, parts.scorer))
            return check_answer(fusion, "fuse_views", view, scores_BN, view.alive.shape).float()
        if not layers:
            return score(parts.scorer, view)
        stacked_LBN = torch.stack([self.scores[layer].to(view.hidden_states.device) for layer in layers])
        scores_BN = ask(fusion, "fuse", view, lambda: fusion.fuse(stacked_LBN, layers))
        return check_answer(fusion, "fuse", view, scores_BN, view.alive.shape).float()

    def keep_views(self, layers: Collection[int]) -> None:
        """Let go of the views of all other layers: they hold queries and keys."""
        self.views = {layer: view for layer, view in self.views.items() if layer in layers}
