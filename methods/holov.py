"""HoloV: a budget for each crop of the image, so that no part of it is left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "holov")
@dataclass
class HoloV(prunekit.Selector):
    """Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention (NeurIPS 2025,
    https://arxiv.org/abs/2510.02912, section 3).

    The tokens of a sample, in raster order, fall into contiguous crops of equal size, the first ones larger by one. A
    token's holistic score is its attention plus ``context`` times the variance of its cosines in the crop, on the scale
    of the attention. Crops share the budget by their mean holistic scores, rounded down; one more each for those of the
    largest. What a crop has no room for goes to the best scores left.

    Args:
        crops: how many.
        context: the weight of the variance.
        variant: "code" (default) chooses in a crop by attention alone, "paper" by the holistic score.
    """

    crops: int = 16
    context: float = 0.09
    variant: str = "code"

    exact = True

    def __post_init__(self) -> None:
        prunekit.check_choice("variant", self.variant, ("code", "paper"))
        if self.crops < 1:
            raise prunekit.PrunekitError(f"selector.crops must be at least 1, not {self.crops}")
        if self.context < 0:
            raise prunekit.PrunekitError(f"selector.context must be at least 0, not {self.context}")

    def select(self, view, scores, quota) -> torch.Tensor:
        alive = view.alive & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles belong to no crop
        attention, crop = torch.where(alive, scores, 0).float(), crops_of(alive, self.crops)
        holistic = attention + self.context * self.variance(view, attention, crop)
        sizes = prunekit.ops.group_sums(alive.long(), crop, self.crops)
        means = prunekit.ops.group_sums(holistic.double(), crop, self.crops) / sizes.clamp(min=1)
        wanted = means / means.sum(1, keepdim=True).clamp(min=1e-12) * quota[:, None]
        counts = wanted.floor().long()
        counts = counts + (prunekit.ops.ranks(wanted) < (quota - counts.sum(1))[:, None])
        kept, by = torch.zeros_like(alive), holistic if self.variant == "paper" else attention
        for number in range(self.crops):
            kept = kept | prunekit.ops.top_k(by, counts[:, number], alive & (crop == number))
        return kept | prunekit.ops.top_k(scores, quota - kept.sum(1), view.alive & ~kept)

    def variance(self, view, attention: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
        """The variance of each token's cosines to the others of its crop, itself counted as 0, [B, N]; scaled so
        that its mean over the crop is that of the attention."""
        same = (crop[:, :, None] == crop[:, None]) & (crop >= 0)[:, None]
        others = (same.sum(-1) - 1).clamp(min=1)
        itself = torch.eye(crop.shape[1], dtype=torch.bool, device=crop.device)
        cosine = prunekit.ops.cosine(view.visual(view.hidden_states)).masked_fill(itself | ~same, 0)
        mean = cosine.sum(-1) / others
        varies = ((cosine - mean[..., None]).square() * same).sum(-1) / others
        level = [(x[:, None] * same).sum(-1) / (others + 1) for x in (attention.abs(), varies)]
        return varies * level[0] / (level[1] + 1e-6)


def crops_of(among: torch.Tensor, count: int) -> torch.Tensor:
    """The crop of each token of ``among`` [B, N], long, -1 elsewhere: ``count`` runs of equal length, the first ones
    longer by one."""
    size, place = among.sum(1, keepdim=True), among.cumsum(1) - 1
    each, longer = size // count, size % count
    head = longer * (each + 1)
    number = torch.where(place < head, place // (each + 1), longer + (place - head) // each.clamp(min=1))
    return torch.where(among, number, -1)


prunekit.compose("holov", scorer="cls", fusion="single", schedule="input", selector="holov", positions="renumber")
