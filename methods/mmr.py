"""Maximal marginal relevance: important tokens that are unlike what has been chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "mmr")
@dataclass
class Mmr(prunekit.Selector):
    """Maximal marginal relevance, the selection of IDPruner and ID-Selection (https://arxiv.org/abs/2604.05601).

    Each pick is the largest λ · importance - (1 - λ) · the largest cosine to the picks so far, the first the most
    important. Importance is the score, scaled to [0, 1] in each sample; cosines are of the tokens that enter the layer.

    Args:
        share: λ.
    """

    share: float = 0.5

    exact = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.share", self.share, "[0, 1]")

    def select(self, view, scores, quota) -> torch.Tensor:
        known = view.alive & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles have no score
        low = scores.masked_fill(~known, torch.inf).amin(1, keepdim=True)
        high = scores.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
        importance = torch.where(known, (scores - low) / (high - low + 1e-6), 0).float()
        cosine = prunekit.ops.cosine(view.visual(view.hidden_states))
        return prunekit.ops.marginal_relevance(importance, cosine, quota, view.alive, self.share)


prunekit.compose("mmr", scorer="cls", fusion="single", schedule="input", selector="mmr", positions="renumber")
