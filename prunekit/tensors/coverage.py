"""Greedy choices of tokens that cover others, or that differ from what has been chosen."""

from __future__ import annotations

import torch


def cover(
    weights: torch.Tensor,
    count: torch.Tensor,
    among: torch.Tensor,
    saliency: torch.Tensor | None = None,
    adds: bool = False,
) -> torch.Tensor:
    """Greedy maximum coverage: each pick raises Σ_r max over picks of ``weights`` most, of equal ones the earlier.

    Args:
        weights: how well each token covers each of R things, [B, R, N]; below 0 counts as 0.
        count: how many are chosen, long [B].
        among: bool [B, N], which tokens may be.
        saliency: a number for each token, [B, N], by which its gain is multiplied.
        adds: whether it is added instead.

    Returns:
        bool [B, N], a subset of ``among``.
    """
    best, free = torch.zeros_like(weights[:, :, 0]), among.clone()
    rows = torch.arange(len(among), device=among.device)
    for step in range(int(count.max())):
        gain = (weights - best[..., None]).clamp(min=0).sum(1)
        if saliency is not None:
            gain = gain + saliency if adds else gain * saliency
        pick = gain.masked_fill(~free, -torch.inf).argmax(1)
        free[rows, pick] &= step >= count  # a sample that has its number picks no more
        best = torch.maximum(best, weights[rows, :, pick])
    return among & ~free


def marginal_relevance(
    importance: torch.Tensor, cosine: torch.Tensor, count: torch.Tensor, among: torch.Tensor, share: float
) -> torch.Tensor:
    """Maximal marginal relevance: each pick is the largest ``share`` · importance - (1 - ``share``) · the cosine to the
    nearest pick so far; the first is the most important, of equal ones the earlier.

    Args:
        importance: [B, N].
        cosine: [B, N, N].
        count: how many are chosen, long [B].
        among: bool [B, N], which tokens may be.

    Returns:
        bool [B, N], a subset of ``among``.
    """
    closest, free = torch.zeros_like(importance), among.clone()
    rows = torch.arange(len(among), device=among.device)
    for step in range(int(count.max())):
        score = importance if step == 0 else share * importance - (1 - share) * closest
        pick = score.masked_fill(~free, -torch.inf).argmax(1)
        free[rows, pick] &= step >= count
        near = cosine[rows, pick]
        closest = near if step == 0 else torch.maximum(closest, near)
    return among & ~free


def greedy_determinant(kernel: torch.Tensor, count: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The tokens that greedily raise the determinant of a kernel most (Chen et al., NeurIPS 2018).

    Args:
        kernel: positive semi-definite, [B, N, N].
        count: how many are chosen, long [B].
        among: bool [B, N], which tokens may be.

    Returns:
        bool [B, N], a subset of ``among``.
    """
    most, rows = int(count.max()), torch.arange(len(among), device=among.device)
    gain, free = kernel.diagonal(dim1=1, dim2=2).clone(), among.clone()
    factor = kernel.new_zeros(len(among), most, among.shape[1])  # of the Cholesky decomposition, row by row
    for step in range(most):
        pick = gain.masked_fill(~free, -torch.inf).argmax(1)
        past = factor[:, :step]
        row = kernel[rows, pick] - (past[rows, :, pick][:, None] @ past)[:, 0]
        row = row / gain[rows, pick].clamp(min=torch.finfo(gain.dtype).eps).sqrt()[:, None]
        factor[:, step] = row
        gain = gain - row.square()
        free[rows, pick] &= step >= count  # a sample that has its number picks no more
    return among & ~free
