"""AutoPrune: how fast the tokens fall over the layers follows from how much the question says about the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

import prunekit


@prunekit.register("schedule", "autoprune")
@dataclass
class AutoPrune(prunekit.Schedule):
    """AutoPrune: Each Complexity Deserves a Pruning Policy (NeurIPS 2025, https://arxiv.org/abs/2509.23931, section 3).

    Before layer x of 32 the share 1 / (1 + exp(k · (x - x0 - k))) of the tokens stays, up to a factor. k is
    max(k0 - γ · I, 0), I the mutual information of the question's tokens and the visual ones, by their attention in
    the layer before the first cut: a question that tells tokens apart lets them fall evenly, one that does not keeps
    more of them for longer.
    The factor is found for each sample: all samples cost, over the layers, what the curve of k0 costs with the
    schedule's keep ratio at its end.

    Args:
        depths: of the cuts, as fractions of the depth (1, 10, 20 and 25 of 32).
        steepness: k0.
        gain: γ.
        middle: x0, in layers of 32.
    """

    depths: list[float] = field(default_factory=lambda: [1 / 32, 10 / 32, 20 / 32, 25 / 32])
    steepness: float = 0.4
    gain: float = 0.2
    middle: float = 14.9

    adapts_counts = True

    def __post_init__(self) -> None:
        prunekit.create("schedule", "progressive", depths=list(self.depths))  # the same rules
        if self.steepness < 0 or self.gain < 0:
            raise prunekit.PrunekitError("schedule.steepness and schedule.gain must be at least 0")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        layers = [
            cut.layer for cut in prunekit.create("schedule", "progressive", depths=list(self.depths)).cuts(depth, 0.5)
        ]
        curve = [self.share(layer, depth, self.steepness) for layer in layers]
        return tuple(prunekit.Cut(x, min(1.0, keep_ratio * s / curve[-1])) for x, s in zip(layers, curve, strict=True))

    def shares(self, view, layers: Sequence[int], depth: int) -> torch.Tensor:
        steep = (self.steepness - self.gain * information(view)).clamp(min=0).tolist()
        return torch.tensor([[self.share(layer, depth, k) for layer in layers] for k in steep])

    def share(self, layer: int, depth: int, k: float) -> float:
        """The curve before ``layer`` of ``depth``, with the steepness k."""
        return 1 / (1 + math.exp(k * (32 * layer / depth - self.middle - k)))


def information(view) -> torch.Tensor:
    """The mutual information of instruction and visual tokens in nats, mean over heads, [B].

    The tokens of the instruction are equally likely; what each attends to among the visual tokens is a distribution.
    """
    _, words = view.query_index("text")
    rows = view.attention("text").double()
    known = view.alive[:, None, None] & words[:, None, :, None]
    attention = view.visual(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * known
    attention = attention / attention.sum(-1, keepdim=True).clamp(min=1e-12)
    weight = words[:, None, :, None] / words.sum(1).clamp(min=1)[:, None, None, None]
    mean = (attention * weight).sum(2, keepdim=True)
    ratio = torch.where(attention > 0, attention / mean.clamp(min=1e-300), 1)
    return (weight * attention * ratio.log()).sum((2, 3)).mean(1)


prunekit.compose(
    "autoprune", scorer="instruction", fusion="single", schedule="autoprune", positions="keep", keep_ratio=0.1
)
