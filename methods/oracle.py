"""The oracle, the control that knows where the answer is: an upper bound for every scorer that must guess it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "oracle")
@dataclass
class Oracle(prunekit.Scorer):
    """Tokens of the region that holds the answer first, by the share of their patch that lies in it, then the nearest.

    The data must know the region (``Example.regions``) and the caller hand it over: ``pruner(model, regions=...)``, as
    the evaluation does. Works for one image a sample whose tokens form a grid over the whole image.
    """

    uses_regions = True

    def score(self, view) -> torch.Tensor:
        regions = view.regions
        if view.grid is None or any(n != view.grid[0] * view.grid[1] for n in view.layout.counts):
            raise prunekit.PrunekitError("scorer 'oracle' needs one image a sample, on a fixed grid of patches")
        if not all(regions):
            raise prunekit.PrunekitError("scorer 'oracle': an example has no region that holds its answer")
        size = max(len(boxes) for boxes in regions)
        padded = [[*boxes, *[boxes[0]] * (size - len(boxes))] for boxes in regions]
        return nearness(torch.tensor(padded, device=view.hidden_states.device), view.grid)


def nearness(boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """For boxes [B, R, 4] in fractions of an image and a grid of patches: [B, rows · columns], the largest share of
    each patch within a box; where it is none, minus the distance of the patch's centre to the nearest box."""
    rows, columns = grid
    top, left = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) / n for n in grid)
    place = torch.cartesian_prod(top, left)  # [N, 2], raster order
    low_N2, high_N2 = place.flip(1), place.flip(1) + boxes.new_tensor([1 / columns, 1 / rows])
    start, end = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    overlap = (torch.minimum(high_N2, end) - torch.maximum(low_N2, start)).clamp(min=0).prod(-1) * rows * columns
    middle = (low_N2 + high_N2) / 2
    distance = torch.maximum((start - middle).clamp(min=0), (middle - end).clamp(min=0)).norm(dim=-1)
    inside = overlap.amax(1)
    return torch.where(inside > 0, inside, -distance.amin(1))


# As the other controls: one cut at a quarter of the depth.
prunekit.compose("oracle", scorer="oracle", fusion="single", schedule="one_shot", positions="keep")
