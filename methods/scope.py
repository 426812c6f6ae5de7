"""SCOPE: tokens that are salient and cover what no chosen one covers yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "coverage")
@dataclass
class Coverage(prunekit.Selector):
    """SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs (NeurIPS 2025,
    https://arxiv.org/abs/2510.24214, section 3).

    A token covers another one by their cosine, as they enter the layer (at the input: what the projector makes). Each
    pick is the token of the largest gain in coverage, times its score to the power ``alpha``.

    Args:
        alpha: the power of the score; with 0 coverage alone decides.
        combine: "multi" multiplies, "add" adds.
    """

    alpha: float = 1.0
    combine: str = "multi"

    exact = True

    def __post_init__(self) -> None:
        prunekit.check_choice("combine", self.combine, ("multi", "add"))
        if self.alpha < 0:
            raise prunekit.PrunekitError(f"selector.alpha must be at least 0, not {self.alpha}")

    def select(self, view, scores, quota) -> torch.Tensor:
        cosine = prunekit.ops.cosine(view.visual(view.hidden_states)) * view.alive[:, :, None]
        known = scores.isfinite() & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles have no score
        saliency = torch.where(known, scores, 0).float().clamp(min=0) ** self.alpha
        return prunekit.ops.cover(cosine, quota, view.alive, saliency, adds=self.combine == "add")


prunekit.compose("scope", scorer="cls", fusion="single", schedule="input", selector="coverage", positions="renumber")
