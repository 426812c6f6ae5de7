"""VScan: tokens of every window and of the whole image before the decoder, a second cut in the middle of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "vscan")
@dataclass
class VScan(prunekit.Selector):
    """VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models (TMLR 2026,
    https://arxiv.org/abs/2505.22654, section 4).

    At the input a part of the budget are the tokens that an early block of the encoder attends to most, no window
    giving more than its equal share, rounded up. The rest are those that the block behind the projector attends to
    most. Attention is what a patch receives, from the CLS token where there is one. In the decoder the highest scores
    stay.

    Args:
        local: share of the budget that comes from windows, rounded down.
        window: tokens on a side of a window (LLaVA 6, Qwen2.5-VL 4); what is left at the edge joins the last window.
        depth: where the early block is, as a fraction of the encoder's blocks (6 of 24).
    """

    local: float = 0.5
    window: int = 6
    depth: float = 0.25

    exact = uses_vision = uses_places = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.local", self.local, "[0, 1]")
        if self.window < 1:
            raise prunekit.PrunekitError(f"selector.window must be at least 1, not {self.window}")
        prunekit.check_interval("selector.depth", self.depth, "(0, 1]")

    def vision_blocks(self, blocks: int) -> Sequence[int]:
        return [max(round(self.depth * blocks) - 1, 0)]

    def select(self, view, scores, quota) -> torch.Tensor:
        if view.site == "decoder":
            return prunekit.ops.top_k(scores, quota, view.alive)
        patches = view.alive & view.vision.exists.to(view.alive.device)
        (block,) = self.vision_blocks(len(view.vision.tower.blocks))
        early, late = (view.vision.attention(number).to(patches.device) for number in (block, None))
        window = self.windows(view.places, patches)
        count = (self.local * quota.double()).long()
        limit = -(-count // (window.amax(1) + 1).clamp(min=1))
        near = prunekit.ops.top_k(early, count, (window >= 0) & (ranks_within(early, window) < limit[:, None]))
        kept = near | prunekit.ops.top_k(late, quota - near.sum(1), patches & ~near)
        return kept | prunekit.ops.top_k(late, quota - kept.sum(1), view.alive & ~kept)

    def windows(self, places, among: torch.Tensor) -> torch.Tensor:
        """The number of each token's window in its sample, long [B, N]; -1 for what stands in none."""
        row, column = (
            torch.minimum(at // self.window, (size // self.window).clamp(min=1) - 1)
            for at, size in ((places.row, places.rows), (places.column, places.columns))
        )
        keys = places.medium, places.frame, places.thumbnail.long(), row, column
        return prunekit.ops.group_numbers(*keys, among=among & places.exists)[0]


@prunekit.register("reducer", "vscan")
@dataclass
class MergeAtInput(prunekit.Reducer):
    """At the input each patch that goes is averaged into the most similar one that stays, by the cosine of what the
    projector makes (VScan, section 4); in the decoder what goes is gone."""

    uses_vision = True

    def reduce(self, *, view, tokens, sizes, kept, alive, **rest) -> prunekit.Reduced:
        if view.site != "input":
            return prunekit.Reduced(tokens)
        patches = view.vision.exists.to(alive.device)
        target = prunekit.ops.nearest(tokens, kept & patches)
        target = target.masked_fill(~patches | ~(kept & patches).any(1, keepdim=True), -1)
        return prunekit.Reduced(*prunekit.ops.merge_into(tokens, sizes, target, kept, alive), sources=target)


def ranks_within(scores: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """The place of each token among the scores [B, N] of its ``group`` [B, N], 0 for the highest: long [B, N]."""
    size, groups = scores.shape[1], int(group.max()) + 1
    place = prunekit.ops.ranks(-(torch.where(group < 0, groups, group) * size + prunekit.ops.ranks(scores)))
    counts = prunekit.ops.group_sums((group >= 0).long(), group, max(groups, 1))
    return place - (counts.cumsum(1) - counts).gather(1, group.clamp(min=0))


prunekit.compose(
    "vscan",
    scorer={"name": "by_site", "input": "cls", "decoder": "fastv"},
    fusion="ahead",
    schedule={"name": "sites", "vision": None, "at_input": True, "decoder": [0.5], "last": 1 / 3},
    selector="vscan",
    reducer="vscan",
    positions="renumber",
)
