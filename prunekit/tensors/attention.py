"""Attention rows of one layer from its queries and keys, for the queries asked for, never as an S×S matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.tensors.indexing import gather_tokens

BLOCK = 2**25
"""Attention weights computed at a time (128 MiB of them): long texts and rollout go through their rows in blocks."""


@dataclass(frozen=True)
class AttentionInputs:
    """What one decoder layer hands to its attention function, as transformers' attention interface passes it.

    Shapes: queries [B, H, S, D] and keys [B, H_kv, S, D] after the rotary embedding; ``mask`` is None (causal if
    ``causal``), 2-D (padding, as flash attention wants it), or 4-D, bool (True = may attend) or additive. ``sinks``
    are logits [H], or [B, H, S, 1] where each query has its own; ``bias`` [B, H, S, S] is added to the logits.
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

    def visible(self, index: torch.Tensor) -> torch.Tensor:
        """Which keys the queries at ``index`` [B, Q] may attend to: bool [B, Q, S]."""
        mask, index = self.mask, index.to(self.keys.device)
        if mask is not None and mask.ndim == 4:
            rows = self._mask_rows(index)
            return (rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2).any(1)
        places = torch.arange(self.keys.shape[2], device=index.device)
        seen = index[..., None] >= places if self.causal else index[..., None] >= 0
        seen = seen.expand(*index.shape, len(places))
        if self.window is not None:
            seen = seen & (index[..., None] - places < self.window)
        return seen if mask is None else seen & mask[:, None, :].bool()

    def rows(self, index: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Post-softmax attention of the queries at ``index`` [B, Q]: float32 [B, H, Q, S]; ``seen`` is ``visible`` of
        them, if it is known."""
        index = index.to(self.keys.device)
        logits = self._logits(index)
        if self.mask is not None and self.mask.ndim == 4 and self.mask.dtype != torch.bool:
            logits = logits + self._mask_rows(index)
        else:
            seen = self.visible(index) if seen is None else seen
            logits = logits.masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
        if self.sinks is not None:
            own = self.sinks.ndim == 4
            sink = _rows_of(self.sinks, index) if own else self.sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
            return torch.cat([logits, sink.float()], dim=-1).softmax(-1)[..., :-1]
        return logits.softmax(-1)

    @property
    def block_rows(self) -> int:
        """How many query rows make a block."""
        return max(1, BLOCK // (self.queries.shape[0] * self.queries.shape[1] * self.keys.shape[2]))

    def _logits(self, index: torch.Tensor) -> torch.Tensor:
        """Logits [B, H, Q, S] of the queries at ``index``, float32, before the mask; a tensor of their own."""
        queries = _rows_of(self.queries, index)
        batch, heads, count, width = queries.shape
        # Query heads that share keys stand side by side: one product for all of them, and no copy of the keys.
        grouped = queries.reshape(batch, self.keys.shape[1], -1, width)
        if grouped.dtype == torch.float32:  # one pass over the queries instead of one over the logits
            logits = grouped * self.scaling @ self.keys.transpose(2, 3)
        else:
            logits = (grouped @ self.keys.transpose(2, 3)).float() * self.scaling
        logits = logits.view(batch, heads, count, -1)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if self.bias is None else logits + _rows_of(self.bias, index).float()

    def propagate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [B, Q, S] times the head-mean attention matrix [S, S] of this layer, a block of its query rows at a
        time: O(Q·S) memory beside the block, O(Q·S²) work, and no S×S matrix."""
        total = torch.zeros_like(rows)
        index = torch.arange(rows.shape[2], device=rows.device).expand(rows.shape[0], -1)
        for start in range(0, rows.shape[2], self.block_rows):
            place = slice(start, start + self.block_rows)
            total = total + rows[:, :, place] @ self.rows(index[:, place]).mean(1)
        return total

    def _mask_rows(self, index: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        return _rows_of(self.mask.expand(index.shape[0], -1, -1, -1)[..., : self.keys.shape[2]], index)


def _rows_of(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` [B, Q] of x [B, H, S, K]: [B, H, Q, K]."""
    return gather_tokens(x.transpose(1, 2), index).transpose(1, 2)
