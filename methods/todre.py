"""ToDRE: the tokens least alike at the input, and none once text and image no longer look at each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("schedule", "todre")
@dataclass
class TwoStages(prunekit.Schedule):
    """A share of the tokens stays before layer 0; before a late layer all may go. The keep ratio is 0.

    Args:
        keep: the share that stays at the input (the paper's 0.25 and 0.1); 0.1 if not given, which a budget may change.
        depth: the late layer as a fraction of the depth (section 4.2).
    """

    keep: float | None = None
    depth: float = 7 / 8

    sites = ("input", "decoder")

    def __post_init__(self) -> None:
        if self.keep is not None:
            prunekit.check_interval("schedule.keep", self.keep, "(0, 1]")
        prunekit.check_interval("schedule.depth", self.depth, "(0, 1)")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        late = min(max(1, round(self.depth * depth)), depth - 1)
        return (prunekit.Cut(0, self.keep or 0.1, "input"), prunekit.Cut(late, 0.0))

    def own_ratio(self) -> float:
        return 0.0

    def earlier(self, depth: int) -> Iterator[prunekit.Schedule]:
        if self.keep is None:
            for percent in range(100, 0, -1):
                yield dataclasses.replace(self, keep=percent / 100)


@prunekit.register("scorer", "cross_modal")
@dataclass
class CrossModal(prunekit.Scorer):
    """How much text and image look at each other in a layer, the same number for all tokens of a sample: the larger of
    the attention that instruction tokens give to all visual ones, and of what visual tokens give to the instruction,
    each a mean over heads and queries (ToDRE, equation 8)."""

    uses_attention = True
    sites = ("decoder",)

    def score(self, view) -> torch.Tensor:
        ratios = mean_share(view, "text", view.visual_mask), mean_share(view, "visual", view.text_mask)
        return torch.maximum(*ratios)[:, None].expand(view.alive.shape)

    def macs(self, work) -> float:
        return work.row_macs(work.queries("text") + work.queries("visual"))


@prunekit.register("selector", "todre")
@dataclass
class MaxSum(prunekit.Selector):
    """ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance (https://arxiv.org/abs/2505.18757v2,
    section 4).

    At the input the first pick is the token that the last block of the encoder attends to most, in the thumbnail where
    there is one; each next pick has the least sum of cosines to all picks so far, of equal ones the earlier. In the
    decoder a sample's tokens all stay if their score reaches ``threshold``, and otherwise all go.

    Args:
        threshold: τ.
    """

    threshold: float = 0.1

    uses_vision = uses_places = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.threshold", self.threshold, "[0, 1]")

    def select(self, view, scores, quota) -> torch.Tensor:
        if view.site == "decoder":
            return view.alive & (scores >= self.threshold)
        thumbnail = view.places.thumbnail & view.alive
        first = torch.where(thumbnail.any(1, keepdim=True), thumbnail, view.alive & view.vision.exists)
        attention = view.vision.attention(-1).to(scores.device).masked_fill(~first, -torch.inf)
        cosine = prunekit.ops.cosine(view.visual(view.hidden_states))
        return least_alike(cosine, attention.argmax(1), quota, view.alive)


def mean_share(view, queries: str, targets: torch.Tensor) -> torch.Tensor:
    """The attention that a query gives to the slots ``targets`` [B, S], mean over heads and a query set: [B]."""
    total, count = 0.0, 0
    for rows, visible in view.attention_blocks(queries):
        asks = visible.any(-1)
        total = total + ((rows.mean(1) * targets[:, None].to(rows.device)).sum(-1) * asks).sum(1)
        count = count + asks.sum(1)
    return total / count.clamp(min=1)


def least_alike(cosine: torch.Tensor, first: torch.Tensor, count: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Greedy max-sum diversification: ``first`` [B], then the least sum of ``cosine`` [B, N, N] to all picks, until
    there are ``count`` [B] of ``among`` [B, N]: bool [B, N]."""
    alike, free = torch.zeros_like(cosine[:, 0]), among.clone()
    rows = torch.arange(len(among), device=among.device)
    for step in range(int(count.max())):
        pick = first if step == 0 else alike.masked_fill(~free, torch.inf).argmin(1)
        free[rows, pick] &= step >= count  # a sample that has its number picks no more
        alike = alike + cosine[rows, pick]
    return among & ~free


prunekit.compose(
    "todre",
    scorer={"name": "by_site", "input": "cls", "decoder": "cross_modal"},
    fusion="single",
    schedule="todre",
    selector="todre",
    positions="renumber",
)
