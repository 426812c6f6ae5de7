"""What makes an importance distribution sparse: a number a sample, lower = sparser. Scores s_i >= 0 over N tokens.

| name | formula | lowest | what it can be gamed by |
|---|---|---|---|
| l1 | sum |s_i| | 0 | the scale of s: attention moves from the image to other tokens, or fusion weights shrink |
| entropy | -sum p_i log p_i / log N, p = s / sum s | 0: one token | no scale; mass may still sit on any one token |
| hoyer | (|s|_1 / |s|_2 - 1) / (sqrt N - 1) | 0: one token | no scale; large entries count more than in entropy |

``l1`` is the founding document's ‖S‖₁. Where S is softmax mass its sum is what the instruction gives to the image at
all, so that it can fall without the distribution becoming any sparser. Hoyer's measure: Hoyer 2004, JMLR 5, sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prunekit.views.trace import CutRecord

TINY = 1e-12


def l1(scores: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """‖s‖₁ of each sample's ``scores`` [B, N], those of ``alive`` [B, N]: [B]."""
    return torch.where(alive, scores, 0.0).abs().sum(1)


def entropy(scores: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Entropy of s / sum s over the greatest possible, log N: [B] in [0, 1]."""
    s = torch.where(alive, scores, 0.0).abs()
    p = s / s.sum(1, keepdim=True).clamp(min=TINY)
    bits = -(p * p.clamp(min=TINY).log()).sum(1)
    return bits / alive.sum(1).clamp(min=2).to(bits).log()


def hoyer(scores: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """One minus Hoyer's sparseness: [B] in [0, 1]."""
    s = torch.where(alive, scores, 0.0).abs()
    root = alive.sum(1).clamp(min=2).to(s).sqrt()
    ratio = s.sum(1) / s.square().sum(1).clamp(min=TINY**2).sqrt()
    return (ratio - 1) / (root - 1)


PENALTIES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": l1,
    "entropy": entropy,
    "hoyer": hoyer,
}


def penalty(name: str, cuts: Sequence[CutRecord]) -> torch.Tensor:
    """The mean over samples and cuts of a penalty on the scores that decided each cut; over what stood before it."""
    found = [PENALTIES[name](cut.scores, ~cut.scores.isnan()).mean() for cut in cuts]
    return torch.stack(found).mean()
