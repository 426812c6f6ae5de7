"""DART as its public code chooses: pivots by the norm of their keys, each of which adds the tokens least like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

NOTE = "key norms of the instruction"


@prunekit.register("scorer", "key_norm")
@dataclass
class KeyNorm(prunekit.Scorer):
    """The L1 norm of a token's keys, all heads side by side, after the rotary embedding."""

    uses_attention = True

    def score(self, view) -> torch.Tensor:
        norms_BS = view.keys.float().abs().sum((1, 3))
        view.notes[NOTE] = norms_BS.masked_fill(~view.text_mask.to(norms_BS.device), -torch.inf)
        return view.visual(norms_BS)


@prunekit.register("selector", "pivots")
@dataclass
class Pivots(prunekit.Selector):
    """Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More (EMNLP 2025,
    https://arxiv.org/abs/2502.11494), as in the code.

    The visual tokens of the highest scores are pivots and stay; tokens of the instruction are pivots too. In the order
    of their places each takes an equal share of what the budget leaves: of the tokens that none has taken those of the
    smallest cosine to it, by the hidden states that enter the cut layer.

    Args:
        visual, text: how many pivots of each kind.
    """

    visual: int = 4
    text: int = 4

    exact = True

    def __post_init__(self) -> None:
        if self.visual < 1 or self.text < 0:
            raise prunekit.PrunekitError("selector.visual must be at least 1 and selector.text at least 0")

    def select(self, view, scores, quota) -> torch.Tensor:
        if self.text and NOTE not in view.notes:
            raise prunekit.PrunekitError("selector 'pivots' reads the instruction's keys: it needs scorer=key_norm")
        kept = prunekit.ops.top_k(scores, quota.clamp(max=self.visual), view.alive)
        for b, budget in enumerate(quota.tolist()):
            pivots = view.slots[b][kept[b]].sort().values
            if self.text:
                norms_S = view.notes[NOTE][b].to(pivots.device)
                best = norms_S.argsort(descending=True, stable=True)[: min(self.text, int(norms_S.isfinite().sum()))]
                pivots = torch.cat([pivots, best.sort().values])
            rest = budget - int(kept[b].sum())
            shares = [rest // len(pivots) + (i < rest % len(pivots)) for i in range(len(pivots))]
            cosine = prunekit.ops.cosine(view.hidden_states[b : b + 1], view.hidden_states[b : b + 1, pivots])[0]
            for likeness_S, share in zip(cosine.T, shares, strict=True):
                free = view.alive[b] & ~kept[b]
                count = torch.tensor([share], device=free.device)
                kept[b] |= prunekit.ops.top_k(-likeness_S[view.slots[b]][None], count, free[None])[0]
        return kept


prunekit.compose(
    "dart_code",
    scorer="key_norm",
    fusion="single",
    schedule={"name": "one_shot", "layer": 2},
    selector="pivots",
    positions="keep",
)
