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


def carve(
    tokens: torch.Tensor, scores: torch.Tensor, alive: torch.Tensor, count: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which ``count`` [B] tokens stay, bool [B, N], and which of these each merged one goes into, long, -1 for none.

    The best int(1.5 · K) by both ranks are candidates. The better half of them stays, and of the others those most like
    one of it (cosine) are merged into it until K stand.
    """
    size = tokens.shape[1]
    places_by = [prunekit.ops.ranks(x.masked_fill(~alive, -torch.inf)) for x in (scores, contribution(tokens, alive))]
    both = weight * (size - places_by[0]).double() + (1 - weight) * (size - places_by[1]).double()
    place = prunekit.ops.ranks(both.masked_fill(~alive, -torch.inf))
    candidates_B = torch.minimum((3 * count) // 2, alive.sum(1))
    better = place < (candidates_B // 2)[:, None]
    others = (place < candidates_B[:, None]) & ~better
    likeness, target = prunekit.ops.cosine(tokens).masked_fill(~better[:, None], -2.0).max(-1)
    merged = prunekit.ops.top_k(likeness, candidates_B - count, others)
    return (better | others) & ~merged, torch.where(merged, target, -1)


@prunekit.register("selector", "tokencarve")
@dataclass
class TokenCarve(prunekit.Selector):
    """TokenCarve: Information-Preserving Visual Token Compression in Multimodal Large Language Models
    (https://arxiv.org/abs/2503.10501), as in the code: ranks by the scores and by how much the hidden states that enter
    the cut layer contribute to the information of all.

    Args:
        weight: of the scores' rank; that of the contribution has the rest.
    """

    weight: float = 0.5

    exact = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise prunekit.PrunekitError(f"selector.weight must lie in [0, 1], not {self.weight}")

    def select(self, view, scores, quota) -> torch.Tensor:
        tokens = view.visual(view.hidden_states)
        kept, target = carve(tokens, scores, view.alive, quota, self.weight)
        view.notes["assigned"] = target
        return kept


prunekit.compose(
    "tokencarve",
    scorer={"name": "instruction", "rows": "last"},
    fusion="single",
    schedule={"name": "one_shot", "layer": 2},
    selector="tokencarve",
    reducer="assigned",
    positions="keep",
)
