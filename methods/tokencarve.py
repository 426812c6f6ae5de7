"""TokenCarve: what carries information and attention is selected, and its less important half is merged in part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


def contribution(tokens: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Of each token [B, N, D] the sum of |U·Σ| over its row of the singular value decomposition, [B, N]."""
    standing_BND = tokens.float() * alive[..., None]  # rows of zeros change neither Σ nor the other rows
    left_BNM, values_BM, _ = torch.linalg.svd(standing_BND, full_matrices=False)
    return (left_BNM * values_BM[:, None]).abs().sum(-1)


@prunekit.register("selector", "tokencarve")
@dataclass
class TokenCarve(prunekit.Selector):
    """TokenCarve: Information-Preserving Visual Token Compression in Multimodal Large Language Models
    (https://arxiv.org/abs/2503.10501), as in the code: ranks by the scores and by how much the hidden states that enter
    the cut layer contribute to the information of all.

    The best int(1.5 · K) by both ranks are candidates. The better half of them stays, and of the others those most like
    one of it (cosine) are merged into it until K stand.

    Args:
        weight: of the scores' rank; that of the contribution has the rest.
    """

    weight: float = 0.5

    exact = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.weight", self.weight, "[0, 1]")

    def select(self, view, scores, quota) -> torch.Tensor:
        tokens, alive = view.visual(view.hidden_states), view.alive
        by_score, by_information = (
            tokens.shape[1] - prunekit.ops.ranks(x.masked_fill(~alive, -torch.inf)).double()
            for x in (scores, contribution(tokens, alive))
        )
        both = self.weight * by_score + (1 - self.weight) * by_information
        place = prunekit.ops.ranks(both.masked_fill(~alive, -torch.inf))
        candidates_B = torch.minimum((3 * quota) // 2, alive.sum(1))
        better = place < (candidates_B // 2)[:, None]
        others = (place < candidates_B[:, None]) & ~better
        likeness, target = prunekit.ops.cosine(tokens).masked_fill(~better[:, None], -2.0).max(-1)
        merged = prunekit.ops.top_k(likeness, candidates_B - quota, others)
        view.notes["assigned"] = torch.where(merged, target, -1)
        return (better | others) & ~merged


prunekit.compose(
    "tokencarve",
    scorer={"name": "instruction", "rows": "last"},
    fusion="single",
    schedule={"name": "one_shot", "layer": 2},
    selector="tokencarve",
    reducer="assigned",
    positions="keep",
)
