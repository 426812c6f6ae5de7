"""Attention rows of one layer from its queries and keys, for the queries asked for, never as an S×S matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens

BLOCK = 2**25
"""Attention weights computed at a time (128 MiB of them): long texts and rollout go through their rows in blocks."""


@dataclass(frozen=True)
class AttentionInputs:
    """What one decoder layer hands to its attention function, as transformers' attention interface passes it.

    Shapes: queries [B, H, S, d] and keys [B, H_kv, S, d] after the rotary embedding; ``mask`` is None (causal if
    ``causal``), 2-D (padding, as flash attention wants it), or 4-D, bool (True = may attend) or additive. ``sinks``
    are logits [H], or [B, H, S, 1] where each query has its own; ``bias`` [B, H, S, S] is added to the logits.
    ``values`` [B, H_kv, S, d] and the ``unrotated`` queries and keys, of the shapes of the rotated ones, are None where
    no component reads them; ``angles`` are the cosines and sines [B, S, r] of the rotary embedding, likewise.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    causal: bool
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    window: int | None = None
    bias: torch.Tensor | None = None
    values: torch.Tensor | None = None
    unrotated: tuple[torch.Tensor, torch.Tensor] | None = None
    angles: tuple[torch.Tensor, torch.Tensor] | None = None

    def without_rotary(self) -> AttentionInputs:
        """The same with queries and keys as they were before the rotary embedding."""
        assert self.unrotated is not None
        queries, keys = self.unrotated
        return replace(self, queries=queries, keys=keys)

    def of_heads(self, heads: Sequence[int]) -> AttentionInputs:
        """The same with some of the query heads alone, each beside the keys that it reads.

        Raises:
            PrunekitError: for a head that the layer does not have, and for no head at all.
        """
        count = self.queries.shape[1]
        if not len(heads) or not all(0 <= head < count for head in heads):
            raise PrunekitError(f"heads: {list(heads)} must name some of the layer's heads 0..{count - 1}")
        index = torch.tensor(list(heads), device=self.queries.device)
        shared = index // (count // self.keys.shape[1])
        of_heads = lambda x, axis: x if x is None or x.shape[axis] == 1 else x.index_select(axis, index.to(x.device))  # noqa: E731
        four_axes = self.mask is not None and self.mask.ndim == 4
        return replace(
            self,
            queries=self.queries[:, index],
            keys=self.keys[:, shared],
            mask=of_heads(self.mask, 1) if four_axes else self.mask,
            sinks=None if self.sinks is None else of_heads(self.sinks, 0 if self.sinks.ndim == 1 else 1),
            bias=of_heads(self.bias, 1),
            values=None if self.values is None else self.values[:, shared],
            unrotated=None if self.unrotated is None else (self.unrotated[0][:, index], self.unrotated[1][:, shared]),
        )

    def visible(self, index: torch.Tensor) -> torch.Tensor:
        """Which keys the queries at ``index`` [B, Q] may attend to: bool [B, Q, S]."""
        mask, index = self.mask, index.to(self.keys.device)
        if mask is not None and mask.ndim == 4:
            rows_BHQS = self._mask_rows(index)
            opened = rows_BHQS if rows_BHQS.dtype == torch.bool else rows_BHQS > torch.finfo(rows_BHQS.dtype).min / 2
            return opened.any(1)
        slots_S = torch.arange(self.keys.shape[2], device=index.device)
        visible_BQS = index[..., None] >= slots_S if self.causal else index[..., None] >= 0
        visible_BQS = visible_BQS.expand(*index.shape, len(slots_S))
        if self.window is not None:
            visible_BQS = visible_BQS & (index[..., None] - slots_S < self.window)
        return visible_BQS if mask is None else visible_BQS & mask[:, None, :].bool()

    def rows(self, index: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Post-softmax attention of the queries at ``index`` [B, Q]: float32 [B, H, Q, S]; ``seen`` is ``visible`` of
        them, if it is known."""
        index = index.to(self.keys.device)
        logits_BHQS = self._logits(index)
        if self.mask is not None and self.mask.ndim == 4 and self.mask.dtype != torch.bool:
            logits_BHQS = logits_BHQS + self._mask_rows(index)
        else:
            seen = self.visible(index) if seen is None else seen
            logits_BHQS = logits_BHQS.masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
        if self.sinks is not None:
            if self.sinks.ndim == 4:
                sink_BHQ1 = _rows_of(self.sinks, index)
            else:
                sink_BHQ1 = self.sinks.reshape(1, -1, 1, 1).expand(*logits_BHQS.shape[:3], 1)
            return torch.cat([logits_BHQS, sink_BHQ1.float()], dim=-1).softmax(-1)[..., :-1]
        return logits_BHQS.softmax(-1)

    @property
    def block_rows(self) -> int:
        """How many query rows make a block."""
        return max(1, BLOCK // (self.queries.shape[0] * self.queries.shape[1] * self.keys.shape[2]))

    def _logits(self, index_BQ: torch.Tensor) -> torch.Tensor:
        """Logits [B, H, Q, S] of the queries at ``index``, float32, before the mask; a tensor of their own."""
        queries_BHQd = _rows_of(self.queries, index_BQ)
        batch, heads, count, width = queries_BHQd.shape
        # Query heads that share keys stand side by side: one product for all of them, and no copy of the keys.
        grouped = queries_BHQd.reshape(batch, self.keys.shape[1], -1, width)
        if grouped.dtype == torch.float32:  # one pass over the queries instead of one over the logits
            logits_BHQS = (grouped * self.scaling @ self.keys.transpose(2, 3)).view(batch, heads, count, -1)
        else:
            logits_BHQS = ((grouped @ self.keys.transpose(2, 3)).float() * self.scaling).view(batch, heads, count, -1)
        if self.softcap is not None:
            logits_BHQS = torch.tanh(logits_BHQS / self.softcap) * self.softcap
        return logits_BHQS if self.bias is None else logits_BHQS + _rows_of(self.bias, index_BQ).float()

    def propagate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [B, Q, S] times the head-mean attention matrix [S, S] of this layer, a block of its query rows at a
        time: O(Q·S) memory beside the block, O(Q·S²) work, and no S×S matrix."""
        total_BQS = torch.zeros_like(rows)
        index_BS = torch.arange(rows.shape[2], device=rows.device).expand(rows.shape[0], -1)
        for start in range(0, rows.shape[2], self.block_rows):
            block = slice(start, start + self.block_rows)
            total_BQS = total_BQS + rows[:, :, block] @ self.rows(index_BS[:, block]).mean(1)
        return total_BQS

    def _mask_rows(self, index_BQ: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        return _rows_of(self.mask.expand(index_BQ.shape[0], -1, -1, -1)[..., : self.keys.shape[2]], index_BQ)


def _rows_of(x: torch.Tensor, index_BQ: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` [B, Q] of x [B, H, S, .]: [B, H, Q, .]."""
    return gather_tokens(x.transpose(1, 2), index_BQ).transpose(1, 2)
