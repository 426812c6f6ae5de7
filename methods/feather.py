"""FEATHER: attention without the rotary embedding's pull towards the last rows, and a coarse grid at the first cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "feather")
@dataclass
class Feather(prunekit.Scorer):
    """Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration (ICCV 2025,
    https://arxiv.org/abs/2412.13180).

    The score is the attention of the last token, softmax over the visual tokens alone, mean over heads, of queries and
    keys as they were before the rotary embedding.
    """

    uses_attention = uses_unrotated = True

    def score(self, view) -> torch.Tensor:
        rows_BHS = view.attention("last", rotary=False)[:, :, 0]
        rows_BNH = view.visual(rows_BHS.transpose(1, 2)) * view.alive[..., None].to(rows_BHS.device)
        return (rows_BNH / rows_BNH.sum(1, keepdim=True).clamp(min=1e-30)).mean(-1)

    def macs(self, work) -> float:
        return work.row_macs(1)


@prunekit.register("selector", "feather")
@dataclass
class FeatherGrid(prunekit.Selector):
    """The best scores; at the first cut also every token of a coarse grid, on top of the schedule's count.

    Args:
        stride: rows and columns between tokens of the grid, counted from the corner of each image, frame or tile.
    """

    stride: int = 3

    uses_places = True

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise prunekit.PrunekitError(f"selector.stride must be at least 1, not {self.stride}")

    def select(self, view, scores, quota) -> torch.Tensor:
        best = prunekit.ops.top_k(scores, quota, view.alive)
        places, exists = view.places, view.layout.exists.to(scores.device)
        grid = places.exists & (places.row % self.stride == 0) & (places.column % self.stride == 0) & view.alive
        first_B1 = (view.alive == exists).all(1, keepdim=True)
        more_B1 = quota[:, None] > 0
        return best | (grid & first_B1 & more_B1)


# Two cuts at a quarter and a half of the depth (layers 8 and 16 of 32): (1 − r)N and the grid, then (1 − r)²N.
prunekit.compose(
    "feather", scorer="feather", fusion="single", schedule="progressive", selector="feather", positions="keep"
)
