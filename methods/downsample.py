"""Control: the image itself shrunk before the vision encoder, to as many patches as tokens are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("schedule", "downsample")
@dataclass
class Downsample(prunekit.Schedule):
    """Pixels are shrunk (bicubic, antialiased) to the grid of patches of the image's proportions nearest to the budget.

    The encoder interpolates its position embeddings, as transformers' ``interpolate_pos_encoding`` does, and costs what
    so few patches cost. Each patch takes the place of the one at its centre in the whole image.
    """

    sites = ("vision",)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        return ()

    def image_grid(self, grid: tuple[int, int], keep_ratio: float) -> tuple[int, int]:
        rows, columns = (torch.tensor([size]) for size in grid)
        share = max(1, round(keep_ratio * grid[0] * grid[1]))
        high, wide = prunekit.ops.cell_grid(rows, columns, torch.tensor([share]))
        return int(high), int(wide)


# Nothing is scored or selected: the scorer stands for none.
prunekit.compose("downsample", scorer="cls", fusion="single", schedule="downsample", positions="renumber")
