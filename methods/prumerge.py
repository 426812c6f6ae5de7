"""LLaVA-PruMerge: the patches whose CLS attention is an outlier, each with what is most like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "prumerge")
@dataclass
class PruMergeScorer(prunekit.Scorer):
    """CLS attention of the encoder's last layer, softmax(QKᵀ/√C) with queries and keys not split into heads.

    LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models (ICCV 2025,
    https://arxiv.org/abs/2403.15388, section 3). Without a CLS token: what a patch receives on average.
    """

    sites = ("input", "decoder")
    uses_vision = True

    def score(self, view) -> torch.Tensor:
        return view.vision.unsplit_attention(-1).masked_fill(~view.vision.exists, -torch.inf)


@prunekit.register("reducer", "prumerge")
@dataclass
class PruMerge(prunekit.Reducer):
    """Each kept token absorbs its nearest others, x ← x + Σ a_j x_j with the scores a as weights, and one token more,
    Σ a_j x_j, stands for all that go (LLaVA-PruMerge, section 3). Kept tokens follow each other by falling attention.

    Nearest is by the cosine of the encoder's last keys over their whole width, kept tokens included.

    Args:
        variant: "code" (default) takes the weights as they are; "paper" makes those of a sum add up to one.
        nearest: how many a kept token absorbs.
    """

    variant: str = "code"
    nearest: int = 32

    acts_before_projector = True

    def __post_init__(self) -> None:
        prunekit.check_choice("variant", self.variant, ("code", "paper"))
        if self.nearest < 0:
            raise prunekit.PrunekitError(f"reducer.nearest must not be negative, not {self.nearest}")

    def split(self, view, standing: int, keep: int) -> tuple[int, int]:
        return (keep - 1, 1) if keep > 1 else (keep, 0)

    def reduce(self, *, view, tokens, sizes, scores, kept, alive, count) -> prunekit.Reduced:
        absorbed = self._absorbed(view, tokens, scores, kept, alive)
        gone = alive & ~kept
        weights = self._shared(torch.where(gone, scores, 0).float()[:, None])
        one = (weights @ tokens.float()).to(tokens.dtype)
        added = prunekit.ops.top_k(scores, count, gone)
        tokens = torch.where(kept[..., None], tokens + absorbed, torch.where(added[..., None], one, tokens))
        place = torch.where(added.any(1, keepdim=True), added.long().argmax(1, keepdim=True), -1)
        order = prunekit.ops.ranks(scores).masked_fill(added, scores.shape[1])
        return prunekit.Reduced(tokens, sizes, added, place.expand_as(kept), order)

    def _absorbed(self, view, tokens, scores, kept, alive) -> torch.Tensor:
        """The weighted sum of what each token takes in, [B, N, D]."""
        itself = torch.eye(kept.shape[1], dtype=torch.bool, device=kept.device)
        cosine = prunekit.ops.cosine(self._keys(view, tokens)).masked_fill(itself | ~alive[:, None], -torch.inf)
        best = cosine.topk(min(self.nearest, kept.shape[1] - 1), dim=-1)
        near = torch.zeros_like(cosine).scatter(-1, best.indices, (best.values > -torch.inf).to(cosine.dtype))
        weights = near * (scores * alive).to(near.dtype).nan_to_num()[:, None]
        return (self._shared(weights) @ tokens.float()).to(tokens.dtype)

    def _shared(self, weights: torch.Tensor) -> torch.Tensor:
        if self.variant == "code":
            return weights
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def _keys(self, view, tokens: torch.Tensor) -> torch.Tensor:
        return view.vision.keys(-1).flatten(2) if view.site == "input" else tokens


PARTS = {"scorer": "prumerge", "fusion": "single", "schedule": "input", "reducer": "prumerge", "positions": "renumber"}
prunekit.compose("prumerge", **PARTS, selector="outliers")
prunekit.compose("prumerge_plus", **PARTS, selector={"name": "outliers", "spread": True})
