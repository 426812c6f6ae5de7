"""Control: spatial average pooling, blind to image and question."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "cells")
@dataclass
class Cells(prunekit.Selector):
    """One token of each cell of a regular grid over the image, the nearest to the cell's centre; scores are ignored.

    The grid is the a × b of the image's proportions that is nearest to the budget, which several images (or tiles) of a
    sample share by their patches. What is nearest is said once.
    """

    ignores_scores = uses_vision = True

    def select(self, view, scores, quota) -> torch.Tensor:
        row, column, rows, columns, image = view.vision.places
        patches = view.alive & (image >= 0)
        area = rows * columns
        share = quota[:, None] * area / patches.sum(1, keepdim=True).clamp(min=1)
        high, wide = prunekit.ops.cell_grid(rows, columns, share)
        cell = (row * high // rows) * wide + column * wide // columns
        offset = (_centre(row, high, rows)) ** 2 + (_centre(column, wide, columns)) ** 2
        chosen = _first_of_each(cell + (image + 1) * (area.amax() + 1), offset, patches)
        _say(quota, chosen)
        return chosen


def _centre(place: torch.Tensor, cells: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """How far a place is from the centre of its cell."""
    return place + 0.5 - (place * cells // size + 0.5) * size / cells


def _first_of_each(group: torch.Tensor, order: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Of each group the entry of the lowest order (of equal ones the first), bool [B, N]."""
    ranked = order.masked_fill(~among, math.inf).argsort(dim=1, stable=True)
    grouped = group.masked_fill(~among, -1).gather(1, ranked)
    place = grouped.argsort(dim=1, stable=True)
    run, index = grouped.gather(1, place), ranked.gather(1, place)
    starts = torch.nn.functional.pad(run[:, :-1], (1, 0), value=-1) != run
    return torch.zeros_like(among).scatter(1, index, starts) & among


def _say(quota: torch.Tensor, chosen: torch.Tensor) -> None:
    wanted, reached = int(quota[0]), int(chosen[0].sum())
    if wanted != reached:
        warnings.warn(f"pooling keeps {reached} tokens, the nearest grid to {wanted}", stacklevel=2)


@prunekit.register("reducer", "pool")
@dataclass
class Pool(prunekit.Reducer):
    """Each token that goes is averaged, by sizes, into the kept one of its image that is nearest to it on the grid."""

    uses_vision = True

    def reduce(self, *, view, tokens, sizes, kept, alive, **rest) -> prunekit.Reduced:
        row, column, _, _, image = view.vision.places
        place = torch.stack([row, column], -1).float()
        far = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
        other = (image[:, :, None] != image[:, None]) | ~kept[:, None]
        nearest = far.masked_fill(other, math.inf).min(-1)
        target = nearest.indices.masked_fill(torch.isinf(nearest.values) | (image < 0), -1)
        return prunekit.Reduced(*prunekit.ops.merge_into(tokens, sizes, target, kept, alive), sources=target)


prunekit.compose(
    "pooling",
    scorer="random",
    fusion="single",
    schedule="input",
    selector="cells",
    reducer="pool",
    positions="renumber",
)
