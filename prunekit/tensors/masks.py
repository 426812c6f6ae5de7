"""Attention masks of a shortened sequence, made from the model's own dense ones."""

from __future__ import annotations

import torch

from prunekit.tensors.sequences import CompactSequence


def _express(seen: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask [B, 1, Q, K] as an attention implementation wants it."""
    if implementation.startswith("flash"):
        return seen[:, 0, -1]
    if implementation == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return seen


def hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """``mask`` (bool, True = may attend, or additive) with the positions of ``hidden`` closed."""
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(hidden, closed)


def prefill_mask(
    mask: torch.Tensor | None, sequence: CompactSequence, implementation: str, dtype: torch.dtype
) -> torch.Tensor | None:
    """The mask [B, 1|H, M, M] of a sequence from the dense one, gathered on both axes.

    None stays None where every sample is equally long: the attention function's causal path is exact then, since the
    order is kept. A 2-D padding mask (flash attention) loses its columns. Padding slots see themselves only, so that
    no softmax is empty.
    """
    index, valid = sequence.index, sequence.valid
    assert index is not None
    if mask is not None and mask.ndim == 2:
        picked = mask.gather(1, index)
        return picked if valid is None else picked * valid.to(picked.dtype)
    if mask is None and valid is None:
        return None
    batch, size = index.shape
    if mask is None:
        assert valid is not None
        causal = torch.ones(size, size, dtype=torch.bool, device=index.device).tril()
        itself = torch.eye(size, dtype=torch.bool, device=index.device)
        return _express((causal & valid[:, None, None, :]) | itself, implementation, dtype)
    mask = mask.expand(batch, -1, -1, -1)
    rows = index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    columns = index[:, None, None, :].expand(-1, mask.shape[1], size, -1)
    picked = mask.gather(2, rows).gather(3, columns)
    if valid is None:
        return picked
    itself = torch.eye(size, dtype=torch.bool, device=index.device)
    picked = hide(picked, ~valid[:, None, None, :])
    opened = True if picked.dtype == torch.bool else 0.0
    return picked.masked_fill(itself & ~valid[:, None, :, None], opened)


def padding_mask(mask: torch.Tensor, sequence: CompactSequence, real: torch.Tensor) -> torch.Tensor:
    """A padding mask [B, M] of a sequence from the dense one [B, S], with its padding slots marked as padding.

    How a mask marks padding is read off a token that is ``real`` [B, S] (without looking at the data on the host): most
    have 1 for tokens and 0 for padding, some the reverse, additive ones 0 and the lowest number.
    """
    assert sequence.index is not None
    picked = mask.gather(1, sequence.index)
    if sequence.valid is None:
        return picked
    token = mask.gather(1, real.to(torch.uint8).argmax(1, keepdim=True))
    if mask.is_floating_point():
        padding = torch.where(token == 0, torch.finfo(mask.dtype).min, 0.0).to(mask.dtype)
    else:
        padding = (token == 0).to(mask.dtype)
    return torch.where(sequence.valid, picked, padding)


def take_columns(mask: torch.Tensor, places: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """The columns ``places`` [B, M] of a 4-D mask [B or 1, 1|H, Q, K] or of a 2-D one [B, K]; those outside ``valid``
    [B, M] closed."""
    if mask.ndim == 2:
        return mask.gather(1, places)
    mask = mask.expand(len(places), -1, -1, -1)
    if valid is not None:
        return hide(take_columns(mask, places), ~valid[:, None, None, :])
    return mask.gather(3, places[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))


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
    rows, batch = sequence.index, len(sequence.index)
    columns = torch.arange(size, device=rows.device).expand(batch, -1) if keys.index is None else keys.index
    closed = ~sequence.present(size).gather(1, columns)
    if keys.valid is not None:
        closed = closed | ~keys.valid
    if mask is None:
        seen = (rows[:, None, :, None] >= columns[:, None, None, :]) & ~closed[:, None, None, :]
        first = torch.arange(columns.shape[1], device=rows.device) == 0
        return _express(seen | ~seen.any(-1, keepdim=True) & first, implementation, dtype)
    mask = mask.expand(batch, -1, -1, -1)
    picked = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    picked = hide(take_columns(picked, columns), closed[:, None, None, :])
    if picked.dtype != torch.bool:
        return picked
    # Padding rows may see nothing now: an empty softmax is NaN, so they look at the first key.
    first = torch.arange(columns.shape[1], device=rows.device) == 0
    return picked | (~picked.any(-1, keepdim=True) & first)


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
    pad = torch.zeros(batch, stored + queries, dtype=torch.bool, device=key_index.device)
    pad[:, :stored] = key_index < 0
    if mask is None:
        order = torch.ones(queries, queries, dtype=torch.bool, device=key_index.device).tril()
        seen = torch.ones(batch, 1, queries, stored, dtype=torch.bool, device=key_index.device)
        seen = torch.cat([seen, order.expand(batch, 1, -1, -1)], dim=-1) & ~pad[:, None, None, :]
        return _express(seen, implementation, dtype)
    assert columns is not None
    pad |= columns < 0
    columns = columns.clamp(min=0)
    if mask.ndim == 2:
        return take_columns(mask, columns) * (~pad).to(mask.dtype)
    return hide(take_columns(mask, columns), pad[:, None, None, :])
