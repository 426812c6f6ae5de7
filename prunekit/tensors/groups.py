"""Groups of tokens (frames, segments, windows): their numbers, their means, and budgets that are exact in total."""

from __future__ import annotations

import torch


def group_numbers(*keys: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Number the groups of tokens that agree in all keys, in order of the keys, sample by sample.

    Args:
        keys: long [B, N] each, not negative where ``among``; the first counts most.
        among: bool [B, N], the tokens that belong to a group.

    Returns:
        numbers [B, N] from 0 on, -1 outside ``among``, and how many groups a sample has at most.
    """
    key_BN = torch.zeros_like(keys[0])
    for key in keys:
        key_BN = key_BN * (int(key.max()) + 1) + key
    last = torch.iinfo(key_BN.dtype).max
    sorted_BN, order_BN = key_BN.masked_fill(~among, last).sort(dim=1, stable=True)
    new_BN = torch.nn.functional.pad(sorted_BN[:, 1:] != sorted_BN[:, :-1], (1, 0))
    numbers_BN = torch.zeros_like(order_BN).scatter(1, order_BN, new_BN.long().cumsum(1)).masked_fill(~among, -1)
    return numbers_BN, int(numbers_BN.max()) + 1


def group_sums(values: torch.Tensor, numbers: torch.Tensor, groups: int) -> torch.Tensor:
    """Sums of values [B, N, .] over the tokens of each group: [B, G, .]; ``numbers`` [B, N] are -1 for none."""
    spare = torch.where(numbers < 0, groups, numbers)
    index = spare.reshape(*spare.shape, *[1] * (values.ndim - 2)).expand_as(values)
    sums = values.new_zeros(len(values), groups + 1, *values.shape[2:])
    return sums.scatter_add(1, index, values)[:, :groups]


def group_means(tokens: torch.Tensor, numbers: torch.Tensor, groups: int) -> torch.Tensor:
    """Means of tokens [B, N, D] over each group: float32 [B, G, D], zero for a group without any."""
    counts_BG = group_sums(torch.ones_like(numbers), numbers, groups)
    return group_sums(tokens.float(), numbers, groups) / counts_BG.clamp(min=1)[..., None]


def apportion(weights: torch.Tensor, total: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Share a whole number among groups in proportion to weights, no group beyond its limit.

    What a full group cannot take goes to the others, in proportion too; what rounding leaves goes to the largest
    remainders, of equal ones to the earlier group (largest remainder method).

    Args:
        weights: [B, G], not negative. Where the open groups of a sample weigh nothing they count alike.
        total: long [B], at most the sum of the limits.
        limits: long [B, G].

    Returns:
        long [B, G], between 0 and the limits; each row sums up to its total.
    """
    weights_BG, total_B1 = weights.double(), total[:, None].double()
    limits_BG = limits.double()
    full_BG, shares_BG = limits == 0, torch.zeros_like(weights_BG)
    for _ in range(weights.shape[1]):  # each round fills a group, or is the last
        open_BG = weights_BG * ~full_BG
        empty_B1 = open_BG.sum(1, keepdim=True) == 0
        open_BG = torch.where(empty_B1, (~full_BG).double(), open_BG)
        left_B1 = total_B1 - (limits_BG * full_BG).sum(1, keepdim=True)
        each_BG = left_B1 * open_BG / open_BG.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        shares_BG = torch.where(full_BG, limits_BG, each_BG)
        full_BG = full_BG | (each_BG >= limits_BG)
    shares_BG = shares_BG.minimum(limits_BG)
    whole_BG = (shares_BG + 1e-9).floor()
    # To nine digits, so that equal remainders are equal after rounding too.
    rest_BG = torch.where(whole_BG < limits_BG, ((shares_BG - whole_BG) * 1e9).round(), -1.0)
    missing_B1 = (total_B1 - whole_BG.sum(1, keepdim=True)).round()
    order_BG = rest_BG.argsort(dim=1, descending=True, stable=True)
    places_BG = torch.arange(weights.shape[1], device=weights.device).expand_as(order_BG)
    rank_BG = torch.empty_like(order_BG).scatter_(1, order_BG, places_BG)
    return (whole_BG + (rank_BG < missing_B1)).long()
