"""Recycling: some of the tokens that go are clustered, and each cluster stays as one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prunekit.components.base import Reduced, Reducer
from prunekit.errors import PrunekitError, check_choice
from prunekit.registry import register
from prunekit.tensors.indexing import gather_tokens, put_where, ragged_index, scatter_where
from prunekit.tensors.ranking import ranks, top_k

if TYPE_CHECKING:
    from prunekit.views.layer import View


@register("reducer", "recycle")
@dataclass
class Recycle(Reducer):
    """Token recycling (SparseVLM, ICML 2025, https://arxiv.org/abs/2410.04417, section 3).

    Of n tokens that go the best m = int(.3 n) + 1 by score form int(m / 10) + 1 clusters by density peaks, on distances
    of hidden states over √D. A cluster's token takes the name of its centre; with ``positions=renumber`` it follows the
    kept tokens, as in the authors' code.

    Args:
        variant: "code" (default) makes a cluster the mean of its tokens, "paper" their sum.
        neighbours: how many of the nearest tokens, itself included, say how dense a token lies; by default as many as
            there are clusters, as in the authors' code.
        on_top: whether clusters come on top of the budget, as in the authors' code (their 64 processes 82 tokens on
            average). By default they are part of it, at most half, so that exactly as many tokens stand as asked for.
    """

    variant: str = "code"
    neighbours: int | None = None
    on_top: bool = False

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("code", "paper"))
        if self.neighbours is not None and self.neighbours < 1:
            raise PrunekitError(f"reducer.neighbours must be at least 1, not {self.neighbours}")

    def split(self, view: View, standing: int, keep: int) -> tuple[int, int]:
        if self.on_top:
            return keep, clusters(standing - keep)
        selected = next(s for s in range(keep, 0, -1) if s + min(clusters(standing - s), keep // 2) <= keep)
        return selected, keep - selected

    def reduce(  # type: ignore[override]
        self,
        *,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        count: torch.Tensor,
        **rest: object,
    ) -> Reduced:
        gone_BN = alive & ~kept
        pool_B = torch.maximum(recycled(gone_BN.sum(1)), count)
        index_BM, valid_BM = ragged_index(top_k(scores, pool_B, gone_BN), int(pool_B.max()))
        x_BMD = gather_tokens(tokens.float(), index_BM) * valid_BM[..., None]
        distance_BMM = torch.cdist(x_BMD, x_BMD, compute_mode="donot_use_mm_for_euclid_dist") / x_BMD.shape[-1] ** 0.5
        neighbours_B = count if self.neighbours is None else torch.full_like(count, self.neighbours)
        centres_BM = density_peaks(distance_BMM, valid_BM, count, neighbours_B)
        member_BMM = members(distance_BMM, centres_BM, valid_BM)
        clusters_BMD = member_BMM @ x_BMD
        if self.variant == "code":
            clusters_BMD = clusters_BMD / member_BMM.sum(-1, keepdim=True).clamp(min=1)
        sizes_BM = (member_BMM @ sizes.gather(1, index_BM)[..., None])[..., 0]
        added_BN = scatter_where(centres_BM, index_BM, centres_BM, alive.shape[1])
        return Reduced(
            put_where(tokens, clusters_BMD, index_BM, centres_BM),
            put_where(sizes, sizes_BM, index_BM, centres_BM),
            added_BN,
        )


def recycled(gone: torch.Tensor) -> torch.Tensor:
    """How many of ``gone`` tokens [B] are recycled: int(.3 n) + 1, as far as there are."""
    return torch.minimum((0.3 * gone.double()).long() + 1, gone)


def clusters(gone: int) -> int:
    """Into how many tokens ``gone`` ones are recycled: int(m / 10) + 1 of the m that are, none of none."""
    return (int(0.3 * gone) + 1) // 10 + 1 if gone else 0


def density_peaks(
    distance: torch.Tensor, valid: torch.Tensor, count: torch.Tensor, neighbours: torch.Tensor
) -> torch.Tensor:
    """The ``count`` [B] cluster centres, bool [B, M], of the ``valid`` [B, M] points at ``distance`` [B, M, M]
    (Rodriguez and Laio, Science 2014, with the density of Du et al., 2016).

    ρ = exp(−mean d² to the ``neighbours`` [B] nearest, itself one of them), δ = distance to the nearest denser point
    (of equally dense ones the earlier counts as denser; for the densest the largest distance of all); centres are the
    points of largest ρ·δ, taken in logarithms.
    """
    size = distance.shape[1]
    pairs_BMM = valid[:, None] & valid[..., None]
    nearest_BMM = distance.masked_fill(~pairs_BMM, torch.inf).sort(-1).values
    near_BMM = nearest_BMM.isfinite() & (torch.arange(size, device=distance.device) < neighbours[:, None, None])
    log_density_BM = -(nearest_BMM.masked_fill(~near_BMM, 0.0) ** 2).sum(-1) / near_BMM.sum(-1).clamp(min=1)
    rank_BM = ranks(log_density_BM.masked_fill(~valid, -torch.inf))
    denser_BMM = pairs_BMM & (rank_BM[:, None] < rank_BM[..., None])
    delta_BM = distance.masked_fill(~denser_BMM, torch.inf).amin(-1)
    widest_B1 = distance.masked_fill(~pairs_BMM, 0.0).amax((1, 2))[:, None]
    return top_k(log_density_BM + torch.where(rank_BM == 0, widest_B1, delta_BM).log(), count, valid)


def members(distance: torch.Tensor, centres: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 where the ``valid`` point of a column belongs to the centre of a row, [B, M, M]: each to the nearest (first)
    of the ``centres`` [B, M]."""
    itself_BM = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    nearest_BM = distance.masked_fill(~centres[:, None], torch.inf).argmin(-1)
    cluster_BM = torch.where(centres, itself_BM, nearest_BM)
    return torch.nn.functional.one_hot(cluster_BM, valid.shape[1]).transpose(1, 2).to(distance.dtype) * valid[:, None]
