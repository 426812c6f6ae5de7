"""The gate of a token, made of its score: how a loss behind a hard choice reaches the scores before it.

    z_i = (s_i - τ) / (T · sd(s)),   p_i = sigmoid(z_i)
    straight_through:  g_i = m_i + p_i - stopgrad(p_i)     (value: the choice m_i itself; gradient: that of p_i)
    soft:              g_i = p_i                           (annealed to the choice by a falling T)

s are a sample's scores over the tokens that stood, m_i is 1 where token i stays, τ lies half-way between the lowest
score that stays and the highest that goes, sd is their standard deviation. τ and sd are functions of the scores too and
take part in the gradient, so that it is exactly that of the formula; scaling all scores changes neither the gates nor
the gradient's direction.

∂L/∂g_i at g_i = 0 is a slope, e_i / Z of a softmax whose sum Z lacks e_i: for a token that attention would fall upon
it is hundreds of times what letting it in would change. So it is clipped, to ``clip`` nats of a sample's loss.

Straight-through estimator: Bengio, Léonard and Courville 2013, https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError, check_choice

KINDS = ("straight_through", "soft")
TINY = 1e-12


@dataclass
class SigmoidGate:
    """The gate of ``GateSession``.

    Args:
        kind: "straight_through" or "soft".
        temperature: T, in standard deviations of the scores; what anneals the soft gate sets it between steps.
        clip: bound of |∂L/∂g_i|, L being a sample's loss summed over its answer; None: no bound.
        scale: what a loss summed over answers is multiplied by before its backward pass, set by who does that.
    """

    kind: str = "straight_through"
    temperature: float = 1.0
    clip: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("train.gate", self.kind, KINDS)
        if not self.temperature > 0:
            raise PrunekitError(f"train.temperature must be above 0, not {self.temperature}")
        if self.clip is not None and not self.clip > 0:
            raise PrunekitError(f"train.gate_clip must be above 0, not {self.clip}")

    def __call__(self, scores: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Gates [B, N] from ``scores`` [B, N] (NaN where not ``alive``); 1 for a sample of which nothing goes."""
        p = torch.sigmoid(self.logits(scores, kept, alive))
        p = torch.where((alive & ~kept).any(1, keepdim=True), p, 1.0)
        g = p if self.kind == "soft" else kept.to(p) + (p - p.detach())
        if self.clip is not None and g.requires_grad:
            g.register_hook(self._clipped)
        return g

    def _clipped(self, slope: torch.Tensor) -> torch.Tensor:
        assert self.clip is not None
        return slope.clamp(-self.clip * self.scale, self.clip * self.scale)

    def logits(self, scores: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """z [B, N]; 0 where not ``alive``."""
        low = scores.masked_fill(~kept, torch.inf).amin(1, keepdim=True)
        high = scores.masked_fill(~alive | kept, -torch.inf).amax(1, keepdim=True)
        threshold = torch.where(high.isfinite() & low.isfinite(), (low + high) / 2, 0.0)
        known = torch.where(alive, scores, 0.0)
        count = alive.sum(1, keepdim=True).clamp(min=1)
        mean = known.sum(1, keepdim=True) / count
        spread = torch.where(alive, known - mean, 0.0).square().sum(1, keepdim=True) / count
        width = self.temperature * (spread + TINY**2).sqrt().clamp(min=TINY)
        return torch.where(alive, known - threshold, 0.0) / width
