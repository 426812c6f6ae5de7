"""Regular grids over an image's patches."""

from __future__ import annotations

import torch


def cell_grid(rows: torch.Tensor, columns: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid of an image's proportions whose number of cells is nearest to a budget.

    Args:
        rows, columns: of the image's patches, long [.].
        share: the budget, a number of cells, [.]. (Shapes are equal, or broadcast.)

    Returns:
        rows a and columns b of the grid, long [.], a at most ``rows`` and b at most ``columns``. Reads the largest
        ``rows`` on the host.
    """
    best = torch.ones_like(rows), torch.ones_like(rows)
    for high in range(1, int(rows.max()) + 1):
        wide = torch.clamp((high * columns / rows).round().long(), min=1).minimum(columns)
        nearer = (high <= rows) & ((high * wide - share).abs() < (best[0] * best[1] - share).abs())
        best = torch.where(nearer, high, best[0]), torch.where(nearer, wide, best[1])
    return best
