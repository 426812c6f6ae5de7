"""Selectors: which tokens stay, given their scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.components.base import Selector
from prunekit.registry import register


@register("selector", "topk")
@dataclass
class TopK(Selector):
    """The ``keep`` highest scores of each sample; of equal ones the earlier token."""

    exact = True

    def select(self, scores: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        ranked = scores.masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(ranked)
        rank = torch.empty_like(ranked).scatter_(1, ranked, places)
        return (rank < keep[:, None]) & alive
