"""Choices of so many tokens in each sample, by score or evenly spaced."""

from __future__ import annotations

import torch


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """The place of each entry among its sample's scores, long [B, N] of ``scores`` [B, N]: 0 for the highest, and of
    equal ones the earlier first."""
    order_BN = scores.argsort(dim=1, descending=True, stable=True)
    places_BN = torch.arange(scores.shape[1], device=scores.device).expand_as(order_BN)
    return torch.empty_like(order_BN).scatter_(1, order_BN, places_BN)


def top_k(scores: torch.Tensor, count: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The highest scores of each sample, of equal ones the earlier.

    Args:
        scores: [B, N], higher is better.
        count: long [B], how many of each sample; where there are fewer all are taken.
        among: bool [B, N], which tokens may be taken.

    Returns:
        bool [B, N], a subset of ``among``.
    """
    return (ranks(scores.masked_fill(~among, -torch.inf)) < count[:, None]) & among


def stride(among: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Evenly spaced tokens of each sample: of the n in ``among``, counted from r = 0, the K where floor((r + 1)·K / n)
    steps up.

    Args:
        among: bool [B, N], which tokens may be taken.
        count: K, long [B]; where there are fewer all are taken.

    Returns:
        bool [B, N], a subset of ``among``.
    """
    total_B1, number_BN = among.sum(1, keepdim=True).clamp(min=1), among.cumsum(1)
    step_BN = (number_BN * count[:, None]).div(total_B1, rounding_mode="floor")
    before_BN = ((number_BN - 1) * count[:, None]).div(total_B1, rounding_mode="floor")
    return among & (step_BN > before_BN)
