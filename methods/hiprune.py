"""HiPrune: anchors of a middle encoder block with their neighbours, and registers of the last block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "hiprune")
@dataclass
class HiPrune(prunekit.Selector):
    """HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models (ACL Findings
    2026, https://arxiv.org/abs/2508.00553, section 3), blind to the question.

    Anchors are the tokens that a middle block of the encoder attends to most, round(``alpha`` · K / 5) of them, and
    buffers the tokens beside, above and below them in raster order. The rest of the budget are registers: what the
    last block attends to most. Attention is what a patch receives, from the CLS token where there is one. Scores are
    ignored.

    Args:
        alpha: share of the budget for anchors and buffers.
        depth: where the middle block is, as a fraction of the encoder's blocks (9 of 24; the authors take 16 of
            Qwen2.5-VL's 32).
    """

    alpha: float = 0.1
    depth: float = 9 / 24

    exact = ignores_scores = uses_vision = uses_places = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.alpha", self.alpha, "[0, 1]")
        prunekit.check_interval("selector.depth", self.depth, "(0, 1]")

    def vision_blocks(self, blocks: int) -> Sequence[int]:
        return [max(round(self.depth * blocks) - 1, 0)]

    def select(self, view, scores, quota) -> torch.Tensor:
        alive = view.alive & view.vision.exists.to(view.alive.device)
        (middle,) = self.vision_blocks(len(view.vision.tower.blocks))
        early, late = (view.vision.attention(block).to(alive.device) for block in (middle, -1))
        least = ((quota >= 5) & (self.alpha > 0)).long()
        count = (self.alpha * quota / 5).round().long().maximum(least)
        anchors = prunekit.ops.top_k(early, count, alive)
        ring = anchors | (beside(view.places, anchors) & alive)
        ring = prunekit.ops.top_k(torch.where(anchors, torch.inf, early), quota, ring)
        registers = prunekit.ops.top_k(late, quota - ring.sum(1), alive & ~ring)
        kept = ring | registers
        return kept | prunekit.ops.top_k(late, quota - kept.sum(1), view.alive & ~kept)


def beside(places, anchors: torch.Tensor) -> torch.Tensor:
    """The neighbours of ``anchors`` [B, N]: one before and one behind in raster order, one row up and one down, within
    the same frame; beyond its ends its first or last token."""
    number, near = places.row * places.columns + places.column, torch.zeros_like(anchors)
    picture, _ = prunekit.ops.group_numbers(places.medium, places.frame, places.thumbnail.long(), among=places.exists)
    same = (picture[:, :, None] == picture[:, None]) & (anchors & places.exists)[:, :, None]
    for step in (-1, 1, -places.columns, places.columns):
        target = (number + step).clamp(min=0).minimum(places.rows * places.columns - 1)
        near = near | ((target[:, :, None] == number[:, None]) & same).any(1)
    return near


prunekit.compose(
    "hiprune", scorer="random", fusion="single", schedule="input", selector="hiprune", positions="renumber"
)
