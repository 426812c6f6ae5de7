"""Selectors: which tokens stay, given their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prunekit.components.base import Selector
from prunekit.errors import check_choice, check_interval
from prunekit.registry import register
from prunekit.tensors.ranking import top_k

if TYPE_CHECKING:
    from prunekit.views.layer import View


@register("selector", "topk")
@dataclass
class TopK(Selector):
    """The ``quota`` highest scores of each sample; of equal ones the earlier token."""

    exact = True

    def select(self, view: View, scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        return top_k(scores, quota, view.alive)


@register("selector", "rank")
@dataclass
class RankRule(TopK):
    """The top k, k being the schedule's count or adapted to the sample by a rank (SparseVLM, ICML 2025,
    https://arxiv.org/abs/2410.04417, section 3).

    Rows are those of the scorer's queries: SparseVLM's raters, or the instruction, or the last token.

    Args:
        variant: "code" (default) keeps the schedule's counts. "paper" removes n = λ · (L − rank(P)) of L tokens, P
            being the rows' attention to them: an image that says more different things to the question keeps more.
        scale: λ; by default the share that the schedule would remove, so that rank 0 is the schedule's count.
    """

    variant: str = "code"
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("code", "paper"))
        if self.scale is not None:
            check_interval("selector.scale", self.scale, "(0, 1]")

    @property
    def adapts_count(self) -> bool:  # type: ignore[override]
        return self.variant == "paper"

    def counts(self, rows: torch.Tensor, quota: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        standing_B, queries_B = alive.sum(1), (rows > 0).any(-1).sum(1)
        values = torch.linalg.svdvals(rows.float())
        eps = torch.finfo(torch.float32).eps
        smallest_B1 = values[:, :1] * torch.maximum(standing_B, queries_B)[:, None] * eps  # as numpy's matrix_rank
        rank_B = (values > smallest_B1).sum(1)
        scale = 1 - quota / standing_B.clamp(min=1) if self.scale is None else self.scale
        goes_B = (scale * (standing_B - rank_B)).round().long()
        return (standing_B - goes_B.clamp(min=0)).clamp(min=1).minimum(standing_B)
