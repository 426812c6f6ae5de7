"""Uniform stride, the control that looks at nothing: tokens evenly spaced in sequence (raster) order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "stride")
@dataclass
class Stride(prunekit.Selector):
    """Of a sample's n standing tokens, the K where floor((r + 1)·K / n) steps up; scores are ignored."""

    exact = True
    ignores_scores = True

    def select(self, scores: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        total = alive.sum(1, keepdim=True).clamp(min=1)
        rank = alive.cumsum(1) - 1
        step = ((rank + 1) * keep[:, None]).div(total, rounding_mode="floor")
        before = (rank * keep[:, None]).div(total, rounding_mode="floor")
        return alive & (step > before)


# One cut at a quarter of the depth; the selector ignores the scores.
prunekit.compose("uniform", scorer="random", fusion="single", schedule="one_shot", selector="stride")
