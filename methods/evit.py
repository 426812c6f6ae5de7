"""EViT: inside the encoder, what the CLS token does not look at is fused into one token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("schedule", "evit")
@dataclass
class EvitSchedule(prunekit.Schedule):
    """Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations (ICLR 2022,
    https://arxiv.org/abs/2202.07800, section 3): cuts inside blocks 3, 6 and 9 of 12, or at these fractions of others.

    Args:
        keep: the share of patches that each cut keeps, ceil(keep · n), beside one fused token (the paper's 0.7, 0.5).
            By default equal steps that end at the keep ratio, the fused token included.
        layers, depths, ratios: see schedule ``encoder``.
    """

    layers: list[int] | None = None
    depths: list[float] | None = None
    ratios: list[float] | None = None
    keep: float | None = None

    sites = ("vision",)

    def __post_init__(self) -> None:
        options = {"layers": self.layers, "depths": self.depths, "ratios": self.ratios}
        self._encoder = prunekit.create("schedule", "encoder", **options)
        if self.keep is not None and (not 0 < self.keep <= 1 or self.ratios is not None):
            raise prunekit.PrunekitError(f"schedule.keep must lie in (0, 1], without schedule.ratios, not {self.keep}")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        return ()

    def own_ratio(self) -> float | None:
        return self._encoder.own_ratio()

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        cuts = self._encoder.vision_cuts(blocks, patches, keep_ratio)
        if self.keep is None:
            return cuts
        counts = [patches]
        for _ in cuts:
            counts.append(min(counts[-1], math.ceil(self.keep * counts[-1]) + 1))
        return tuple(prunekit.Cut(cut.layer, n / patches, "vision") for cut, n in zip(cuts, counts[1:], strict=True))


@prunekit.register("reducer", "fuse")
@dataclass
class Fuse(prunekit.Reducer):
    """One token more, Σ a_i x_i over what goes, with the scores a as they are (EViT, section 3).

    It is an ordinary token from then on, comes last, and bears the name of the best that goes.
    """

    def split(self, view, standing: int, keep: int) -> tuple[int, int]:
        return (keep - 1, 1) if keep > 1 else (keep, 0)

    def reduce(self, *, tokens, sizes, scores, kept, alive, count, **rest) -> prunekit.Reduced:
        gone = alive & ~kept
        weights = torch.where(gone, scores, 0)
        weights = weights.masked_fill(weights <= torch.finfo(weights.dtype).min, 0)  # what has no score has no weight
        fused = (weights.float()[:, None] @ tokens.float()).to(tokens.dtype)
        mass = torch.where(gone, sizes, 0).sum(1, keepdim=True)
        added = prunekit.ops.top_k(scores, count, gone)
        sources = torch.where(added.any(1, keepdim=True), added.long().argmax(1, keepdim=True), -1).expand_as(kept)
        tokens = torch.where(added[..., None], fused, tokens)
        return prunekit.Reduced(tokens, torch.where(added, mass, sizes), added, sources)


prunekit.compose("evit", scorer="cls", fusion="single", schedule="evit", reducer="fuse", positions="renumber")
