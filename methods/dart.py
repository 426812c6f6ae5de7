"""DART: what duplicates a few pivot tokens goes, without any attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "dart")
@dataclass
class Dart(prunekit.Scorer):
    """Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More (EMNLP 2025,
    https://arxiv.org/abs/2502.11494, section 3).

    Pivots are the visual tokens of largest norm. They stay, and of the others those least similar to any pivot: the
    score is minus the largest cosine to a pivot. Norms and cosines are of the hidden states of the layer that the
    fusion names; with ``ahead`` those that enter the cut layer.

    Args:
        pivots: how many.
    """

    pivots: int = 8

    def __post_init__(self) -> None:
        if self.pivots < 1:
            raise prunekit.PrunekitError(f"scorer.pivots must be at least 1, not {self.pivots}")

    def score(self, view) -> torch.Tensor:
        tokens_BND = view.visual(view.hidden_states).float()
        alive = view.alive.to(tokens_BND.device)
        norms_BN = tokens_BND.norm(dim=-1).masked_fill(~alive, -1.0)
        order_BN = norms_BN.argsort(dim=1, descending=True, stable=True)
        chosen_BP = order_BN[:, : self.pivots]
        cosine_BNP = prunekit.ops.cosine(tokens_BND, prunekit.ops.gather_tokens(tokens_BND, chosen_BP))
        exists_B1P = alive.gather(1, chosen_BP)[:, None]
        scores_BN = -cosine_BNP.masked_fill(~exists_B1P, -1.0).amax(-1)
        # Pivots come before all others (cosines end at 1), the longest first.
        places = torch.arange(chosen_BP.shape[1], 0, -1, device=scores_BN.device).expand_as(chosen_BP)
        return scores_BN.scatter(1, chosen_BP, 1.0 + places.to(scores_BN.dtype))

    def macs(self, work) -> float:
        return float(min(self.pivots, work.visual) * work.visual * work.heads * work.head_dim)


prunekit.compose("dart", scorer="dart", fusion="ahead", schedule={"name": "one_shot", "layer": 2}, positions="keep")
