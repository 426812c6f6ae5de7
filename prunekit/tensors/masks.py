"""Attention masks of a shortened sequence, made from the model's own dense ones."""

from __future__ import annotations

import torch

from prunekit.tensors.sequences import CompactSequence


def _express(open_B1QK: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask over queries and keys as an attention implementation wants it."""
    if implementation.startswith("flash"):
        return open_B1QK[:, 0, -1]
    if implementation == "eager":
        zeros_B1QK = torch.zeros(open_B1QK.shape, dtype=dtype, device=open_B1QK.device)
        return zeros_B1QK.masked_fill(~open_B1QK, torch.finfo(dtype).min)
    return open_B1QK


def hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """``mask`` (bool, True = may attend, or additive) closed where ``hidden``, broadcast to its shape, is True."""
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(hidden, closed)


def weigh_columns(
    mask: torch.Tensor | None, bias: torch.Tensor, queries: int, dtype: torch.dtype, causal: bool = True
) -> torch.Tensor:
    """An additive mask [B, 1|H, Q, K]: ``bias`` [B, K] on every key that ``mask`` leaves open.

    ``mask`` is a 4-D one, bool or additive, with at least K columns; None is ``causal``, the ``queries`` being those of
    the last keys, or all open.
    """
    size = bias.shape[1]
    if mask is None:
        open_QK = torch.ones(queries, size, dtype=torch.bool, device=bias.device)
        mask = (open_QK.tril(size - queries) if causal else open_QK)[None, None]
    mask = mask[..., :size]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    # The sum of two lowest numbers would be minus infinity, and a row of these NaN.
    return torch.where(mask > torch.finfo(mask.dtype).min / 2, mask + bias[:, None, None].to(mask), mask)


def prefill_mask(
    mask: torch.Tensor | None, sequence: CompactSequence, implementation: str, dtype: torch.dtype
) -> torch.Tensor | None:
    """The mask [B, 1|H, M, M] of a sequence from the dense one, gathered on both axes.

    None stays None where every sample is equally long: the attention function's causal path is exact then, since the
    order is kept. A 2-D padding mask (flash attention) loses its columns. Padding slots see themselves only, so that
    no softmax is empty.
    """
    index_BM, valid_BM = sequence.index, sequence.valid
    assert index_BM is not None
    if mask is not None and mask.ndim == 2:
        mask_BM = mask.gather(1, index_BM)
        return mask_BM if valid_BM is None else mask_BM * valid_BM.to(mask_BM.dtype)
    if mask is None and valid_BM is None:
        return None
    batch, size = index_BM.shape
    if mask is None:
        assert valid_BM is not None
        causal_MM = torch.ones(size, size, dtype=torch.bool, device=index_BM.device).tril()
        itself_MM = torch.eye(size, dtype=torch.bool, device=index_BM.device)
        return _express((causal_MM & valid_BM[:, None, None, :]) | itself_MM, implementation, dtype)
    mask_BHSS = mask.expand(batch, -1, -1, -1)
    row_index_BHMS = index_BM[:, None, :, None].expand(-1, mask_BHSS.shape[1], -1, mask_BHSS.shape[3])
    column_index_BHMM = index_BM[:, None, None, :].expand(-1, mask_BHSS.shape[1], size, -1)
    mask_BHMM = mask_BHSS.gather(2, row_index_BHMS).gather(3, column_index_BHMM)
    if valid_BM is None:
        return mask_BHMM
    itself_MM = torch.eye(size, dtype=torch.bool, device=index_BM.device)
    mask_BHMM = hide(mask_BHMM, ~valid_BM[:, None, None, :])
    opened = True if mask_BHMM.dtype == torch.bool else 0.0
    return mask_BHMM.masked_fill(itself_MM & ~valid_BM[:, None, :, None], opened)


def padding_mask(mask: torch.Tensor, sequence: CompactSequence, real: torch.Tensor) -> torch.Tensor:
    """A padding mask [B, M] of a sequence from the dense one [B, S], with its padding slots marked as padding.

    How a mask marks padding is read off a token that is ``real`` [B, S] (without looking at the data on the host): most
    have 1 for tokens and 0 for padding, some the reverse, additive ones 0 and the lowest number.
    """
    assert sequence.index is not None
    mask_BM = mask.gather(1, sequence.index)
    if sequence.valid is None:
        return mask_BM
    token_B1 = mask.gather(1, real.to(torch.uint8).argmax(1, keepdim=True))
    if mask.is_floating_point():
        padding_B1 = torch.where(token_B1 == 0, torch.finfo(mask.dtype).min, 0.0).to(mask.dtype)
    else:
        padding_B1 = (token_B1 == 0).to(mask.dtype)
    return torch.where(sequence.valid, mask_BM, padding_B1)


def take_columns(mask: torch.Tensor, places: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """The columns ``places`` [B, M] of a 4-D mask [B or 1, 1|H, Q, K] or of a 2-D one [B, K]; those outside ``valid``
    [B, M] closed."""
    if mask.ndim == 2:
        return mask.gather(1, places)
    mask_BHQK = mask.expand(len(places), -1, -1, -1)
    columns_BHQM = mask_BHQK.gather(3, places[:, None, None, :].expand(-1, *mask_BHQK.shape[1:3], -1))
    return columns_BHQM if valid is None else hide(columns_BHQM, ~valid[:, None, None, :])


def shared_mask(
    mask: torch.Tensor | None,
    sequence: CompactSequence,
    keys: CompactSequence,
    size: int,
    implementation: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The mask of a layer in ``sequence`` that borrows the keys of an earlier sequence: [B, 1|H, M, K].

    Rows are those of its own sequence, columns those of ``keys``, less the tokens that went in between.
    """
    assert sequence.index is not None
    index_BM, batch = sequence.index, len(sequence.index)
    key_index_BK = torch.arange(size, device=index_BM.device).expand(batch, -1) if keys.index is None else keys.index
    closed_BK = ~sequence.present(size).gather(1, key_index_BK)
    if keys.valid is not None:
        closed_BK = closed_BK | ~keys.valid
    if mask is None:
        visible_B1MK = (index_BM[:, None, :, None] >= key_index_BK[:, None, None, :]) & ~closed_BK[:, None, None, :]
        first_K = torch.arange(key_index_BK.shape[1], device=index_BM.device) == 0
        return _express(visible_B1MK | ~visible_B1MK.any(-1, keepdim=True) & first_K, implementation, dtype)
    mask_BHSS = mask.expand(batch, -1, -1, -1)
    row_index_BHMS = index_BM[:, None, :, None].expand(-1, mask_BHSS.shape[1], -1, mask_BHSS.shape[3])
    mask_BHMK = take_columns(mask_BHSS.gather(2, row_index_BHMS), key_index_BK)
    mask_BHMK = hide(mask_BHMK, closed_BK[:, None, None, :])
    if mask_BHMK.dtype != torch.bool:
        return mask_BHMK
    # Padding rows may see nothing now: an empty softmax is NaN, so they look at the first key.
    first_K = torch.arange(key_index_BK.shape[1], device=index_BM.device) == 0
    return mask_BHMK | (~mask_BHMK.any(-1, keepdim=True) & first_K)


def decode_mask(
    mask: torch.Tensor | None,
    key_index: torch.Tensor,
    columns: torch.Tensor | None,
    padded: bool,
    queries: int,
    implementation: str,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """The mask over stored and new keys when ``queries`` tokens are added to a pruned cache layer.

    ``key_index`` [B, stored] are the dense positions of the stored keys, -1 for padding, and ``columns``
    [B, stored + new] where they and the new ones stand in ``mask``, negative where they do not. None stays None if
    there is no padding (a single query then sees every key).
    """
    if mask is None and not padded:
        return None
    batch, stored = key_index.shape
    closed_BK = torch.zeros(batch, stored + queries, dtype=torch.bool, device=key_index.device)
    closed_BK[:, :stored] = key_index < 0
    if mask is None:
        causal_QQ = torch.ones(queries, queries, dtype=torch.bool, device=key_index.device).tril()
        before = torch.ones(batch, 1, queries, stored, dtype=torch.bool, device=key_index.device)
        visible_B1QK = torch.cat([before, causal_QQ.expand(batch, 1, -1, -1)], dim=-1)
        return _express(visible_B1QK & ~closed_BK[:, None, None, :], implementation, dtype)
    assert columns is not None
    closed_BK |= columns < 0
    mask = take_columns(mask, columns.clamp(min=0))
    return mask * (~closed_BK).to(mask.dtype) if mask.ndim == 2 else hide(mask, closed_BK[:, None, None, :])
