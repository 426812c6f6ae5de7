"""Uniform stride, the control that looks at nothing: tokens evenly spaced in sequence (raster) order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "stride")
@dataclass
class Stride(prunekit.Selector):
    """Of a sample's n standing tokens, the K where floor((r + 1)·K / n) steps up; scores are ignored."""

    exact = ignores_scores = True

    def select(self, view, scores, quota) -> torch.Tensor:
        return prunekit.ops.stride(view.alive, quota)


# One cut at a quarter of the depth; the selector ignores the scores.
prunekit.compose("uniform", scorer="random", fusion="single", schedule="one_shot", selector="stride")
