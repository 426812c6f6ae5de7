"""DivPrune: the tokens that lie farthest apart, whatever any attention says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "maxmin")
@dataclass
class MaxMin(prunekit.Selector):
    """DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (CVPR 2025,
    https://arxiv.org/abs/2503.02175, section 3).

    Distance is one minus the cosine of the tokens that enter the layer (at the input: what the projector makes). The
    first pick is the token farthest from its nearest neighbour, each next one the farthest from all picks so far.
    Scores are ignored. A step costs O(N) on distances that are computed once.
    """

    exact = ignores_scores = True

    def select(self, view, scores, quota) -> torch.Tensor:
        distance = 1 - prunekit.ops.cosine(view.visual(view.hidden_states))
        return farthest(distance, quota, view.alive)


def farthest(distance: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Greedy farthest points of ``distance`` [B, N, N], ``keep`` [B] of those ``alive`` [B, N]: bool [B, N]."""
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    gap = distance.masked_fill(itself | ~alive[:, None], torch.inf).amin(-1)
    free, rows = alive.clone(), torch.arange(len(alive), device=alive.device)
    for step in range(int(keep.max())):
        pick = gap.masked_fill(~free, -torch.inf).argmax(1)
        free[rows, pick] &= step >= keep  # a sample that has its number picks no more
        near = distance[rows, pick]
        gap = near if step == 0 else torch.minimum(gap, near)
    return alive & ~free


prunekit.compose(
    "divprune", scorer="random", fusion="single", schedule="input", selector="maxmin", positions="renumber"
)
