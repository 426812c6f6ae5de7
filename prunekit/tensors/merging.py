"""Which tokens are alike, and sums and means of tokens that become one."""

from __future__ import annotations

import torch

from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens, ragged_index


def cosine(tokens: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """The cosine of every token [B, N, D] to every one of ``others`` [B, M, D], in float32: [B, N, M]; by default to
    each other, [B, N, N]."""
    units_BND = torch.nn.functional.normalize(tokens.float(), dim=-1)
    others_BMD = units_BND if others is None else torch.nn.functional.normalize(others.float(), dim=-1)
    return units_BND @ others_BMD.transpose(1, 2)


def nearest(tokens: torch.Tensor, among: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """For each token the one of ``among`` with the largest cosine to it, of equal ones the earlier.

    Args:
        tokens: [B, N, D], in any metric: hidden states, keys.
        among: bool [B, N], the candidates.
        most: how many candidates the samples have at most, where the host knows it. Then only cosines to so many are
            computed, [B, N, most], instead of [B, N, N].

    Returns:
        long [B, N], positions of candidates; 0 in samples that have none.
    """
    if most is None:
        return cosine(tokens).masked_fill(~among[:, None], -torch.inf).argmax(-1)
    index_BM, valid_BM = ragged_index(among, most)
    if not most:
        return torch.zeros_like(among, dtype=torch.long)
    cosine_BNM = cosine(tokens, gather_tokens(tokens, index_BM))
    return index_BM.gather(1, cosine_BNM.masked_fill(~valid_BM[:, None], -torch.inf).argmax(-1))


def sum_into(tokens: torch.Tensor, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the tokens that go to each position, and the sum of their weights.

    Args:
        tokens: [B, N, D].
        weights: [B, N], of any type; 0 for a token that goes nowhere.
        target: the position that each token goes to, long [B, N].

    Returns:
        sums [B, N, D] of the type of ``tokens``, and totals [B, N] of the type of ``weights``.
    """
    weighted_BND = tokens * weights[..., None].to(tokens.dtype)
    sums_BND = torch.zeros_like(tokens).scatter_add(1, target[..., None].expand_as(tokens), weighted_BND)
    return sums_BND, torch.zeros_like(weights).scatter_add(1, target, weights)


def merge_into(
    tokens: torch.Tensor, sizes: torch.Tensor, target: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average each token that goes into a kept one, by size (ToMe, ICLR 2023, section 3).

    Args:
        tokens: [B, N, D].
        sizes: how many original tokens each stands for, [B, N].
        target: long [B, N]: the kept token that each one goes into, -1 for none. Only what it says of tokens that go
            (``alive`` and not ``kept``) counts.
        kept: bool [B, N], the tokens that stay.
        alive: bool [B, N], the tokens that stood before.

    Returns:
        tokens [B, N, D] and sizes [B, N], changed where ``kept``. A kept token is the mean, by size, of itself and of
        all that went into it; its size is their sum.

    Raises:
        PrunekitError: if sizes, target, kept and alive are not all [B, N].
    """
    if any(x.shape != tokens.shape[:2] for x in (sizes, target, kept, alive)):
        shapes = [tuple(x.shape) for x in (sizes, target, kept, alive)]
        raise PrunekitError(f"sizes, target, kept and alive must be {list(tokens.shape[:2])}, not {shapes}")
    itself_BN = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    goes_BN = alive & ~kept & (target >= 0)
    sums_BND, totals_BN = sum_into(tokens, sizes * alive, torch.where(goes_BN, target, itself_BN))
    means_BND = sums_BND / totals_BN.clamp(min=1)[..., None].to(tokens.dtype)
    return torch.where(kept[..., None], means_BND, tokens), torch.where(kept, totals_BN, sizes)


def density_peaks(tokens: torch.Tensor, among: torch.Tensor, neighbours: int | torch.Tensor) -> torch.Tensor:
    """How well each token would do as the centre of a cluster (density peaks, DPC-KNN).

    The score is a token's density times its distance to the nearest denser token, the largest distance where there is
    none; of equally dense tokens the earlier counts as denser. Density is exp(-the mean squared distance to its nearest
    tokens), and distances are divided by the square root of D.

    Args:
        tokens: [B, N, D].
        among: bool [B, N], the tokens that count; B may be frames.
        neighbours: how many nearest tokens make the density, itself included; one number, or one for each of B, long.

    Returns:
        float32 [B, N] (float64 for such tokens), arbitrary outside ``among``.
    """
    far_BNN = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[-1] ** 0.5
    both_BNN = among[:, :, None] & among[:, None]
    near_BNN = far_BNN.masked_fill(~both_BNN, torch.inf).sort(-1).values
    counted_BNN = torch.arange(far_BNN.shape[-1], device=tokens.device) < torch.as_tensor(
        neighbours, device=tokens.device
    ).reshape(-1, 1, 1)
    counted_BNN = counted_BNN & near_BNN.isfinite()
    squares_BN = near_BNN.masked_fill(~counted_BNN, 0).square().sum(-1)
    density_BN = (-squares_BN / counted_BNN.sum(-1).clamp(min=1)).exp()
    order_BN = density_BN.masked_fill(~among, -1).argsort(dim=1, descending=True, stable=True)
    places_BN = torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
    rank_BN = torch.empty_like(order_BN).scatter_(1, order_BN, places_BN)
    denser_BNN = both_BNN & (rank_BN[:, None] < rank_BN[:, :, None])
    most_B11 = far_BNN.masked_fill(~both_BNN, 0).amax((1, 2))[:, None, None]
    return torch.where(denser_BNN, far_BNN, most_B11).amin(-1) * density_BN
