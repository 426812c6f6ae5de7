"""Reducers: what becomes of the tokens that do not stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.components.base import Reducer
from prunekit.components.selectors import top
from prunekit.engine.layout import ragged_index, take
from prunekit.errors import PrunekitError, check_choice
from prunekit.registry import register


@register("reducer", "drop")
@dataclass
class Drop(Reducer):
    """The rest is gone: removal equals masking."""


@register("reducer", "merge")
@dataclass
class Merge(Reducer):
    """Each token that goes is averaged into the kept token most similar to it, by size (ToMe, ICLR 2023, section 3).

    Similarity is the cosine of the hidden states entering the cut layer (of equal ones the earlier token); sizes carry
    over from cut to cut, so that after two cuts a token is still the mean of all that it stands for.
    """

    changes_tokens = True

    def reduce(
        self, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        units = torch.nn.functional.normalize(tokens.float(), dim=-1)
        cosine_BNN = (units @ units.transpose(1, 2)).masked_fill(~kept[:, None, :], -torch.inf)
        goes = alive & ~kept
        itself = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        target = torch.where(goes, cosine_BNN.argmax(-1), itself)
        mass = sizes * alive
        total = torch.zeros_like(mass).scatter_add(1, target, mass)
        weighted = (tokens * mass[..., None].to(tokens.dtype)).to(tokens.dtype)
        summed = torch.zeros_like(tokens).scatter_add(1, target[..., None].expand_as(tokens), weighted)
        merged = summed / total.clamp(min=1)[..., None].to(tokens.dtype)
        return torch.where(kept[..., None], merged, tokens), torch.where(kept, total, sizes)


@register("reducer", "recycle")
@dataclass
class Recycle(Reducer):
    """Some of the tokens that go are clustered, and each cluster stays as one token (SparseVLM, ICML 2025, section 3.4).

    Of n tokens that go the best m = int(.3 n) + 1 by score form int(m / 10) + 1 clusters by density peaks, on distances of
    hidden states over √D. A cluster's token takes the name of its centre; with ``positions=renumber`` it follows the kept tokens, as in the authors' code.

    Args:
        variant: "code" (default) makes a cluster the mean of its tokens, "paper" their sum.
        neighbours: nearest others that say how dense a token lies.
        on_top: whether clusters come on top of the budget, as in the authors' code (their 64 processes 82 tokens on
            average). By default they are part of it, at most half, so that exactly as many tokens stand as asked for.
    """

    variant: str = "code"
    neighbours: int = 5
    on_top: bool = False

    adds_tokens = True

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("code", "paper"))
        if self.neighbours < 1:
            raise PrunekitError(f"reducer.neighbours must be at least 1, not {self.neighbours}")

    def share(self, standing: int, keep: int) -> tuple[int, int]:
        if self.on_top:
            return keep, clusters(standing - keep)
        selected = next(s for s in range(keep, 0, -1) if s + min(clusters(standing - s), keep // 2) <= keep)
        return selected, keep - selected

    def add(
        self,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        count: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gone = alive & ~kept
        pool = torch.maximum(recycled(gone.sum(1)), count)
        index, valid = ragged_index(top(scores, pool, gone), int(pool.max()))
        x_BMD = take(tokens.float(), index)
        distance_BMM = torch.cdist(x_BMD, x_BMD, compute_mode="donot_use_mm_for_euclid_dist") / x_BMD.shape[-1] ** 0.5
        centres = density_peaks(distance_BMM, valid, count, self.neighbours)
        nearest = distance_BMM.masked_fill(~centres[:, None], torch.inf).argmin(-1)
        itself = torch.arange(index.shape[1], device=index.device).expand_as(index)
        cluster = torch.where(centres | ~valid, itself, nearest)
        summed = torch.zeros_like(x_BMD).scatter_add(1, cluster[..., None].expand_as(x_BMD), x_BMD * valid[..., None])
        members = torch.zeros_like(distance_BMM[..., 0]).scatter_add(1, cluster, valid.to(distance_BMM.dtype))
        mass = torch.zeros_like(sizes[:, :1]).expand(index.shape).scatter_add(1, cluster, sizes.gather(1, index) * valid)
        if self.variant == "code":
            summed = summed / members.clamp(min=1)[..., None]
        spare = tokens.shape[1]  # slots that are no centre all write there
        place = index.masked_fill(~centres, spare)
        added = torch.zeros_like(alive).new_zeros(len(alive), spare + 1).scatter(1, place, centres)[:, :spare]
        longer = torch.cat([tokens, tokens[:, :1]], 1)
        tokens = longer.scatter(1, place[..., None].expand_as(summed), summed.to(tokens.dtype))[:, :spare]
        sizes = torch.cat([sizes, sizes[:, :1]], 1).scatter(1, place, mass)[:, :spare]
        return tokens, sizes, added


def recycled(gone: torch.Tensor) -> torch.Tensor:
    """How many of ``gone`` tokens [B] are recycled: int(.3 n) + 1, as far as there are."""
    return torch.minimum((0.3 * gone.double()).long() + 1, gone)


def clusters(gone: int) -> int:
    """Into how many tokens ``gone`` ones are recycled: int(m / 10) + 1 of the m that are, none of none."""
    return (int(0.3 * gone) + 1) // 10 + 1 if gone else 0


def density_peaks(distance: torch.Tensor, valid: torch.Tensor, count: torch.Tensor, neighbours: int) -> torch.Tensor:
    """The ``count`` [B] cluster centres, bool [B, M], of points at ``distance`` [B, M, M] (Rodriguez and Laio, Science
    2014, with the density of Du et al., 2016): ρ = exp(−mean d² to the nearest others), δ = distance to the nearest
    denser point (of equal ones the earlier; for the densest the largest distance), centres those of largest ρ·δ.
    """
    size = distance.shape[1]
    apart = ~torch.eye(size, dtype=torch.bool, device=distance.device) & valid[:, None] & valid[..., None]
    nearest = distance.masked_fill(~apart, torch.inf).sort(-1).values[..., :neighbours]
    found = nearest.isfinite()
    log_density = -(nearest.masked_fill(~found, 0.0) ** 2).sum(-1) / found.sum(-1).clamp(min=1)
    order = log_density.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(size, device=distance.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    denser = apart & (rank[:, None] < rank[..., None])
    delta = distance.masked_fill(~denser, torch.inf).amin(-1)
    widest = distance.masked_fill(~apart, 0.0).amax(-1)
    return top(log_density + torch.where(rank == 0, widest, delta).log(), count, valid)
