"""Attention rows of one layer from its queries and keys, for the queries asked for, never as an S×S matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.engine.layout import take

CHUNK = 256
"""Query rows computed at a time where all of a layer's rows pass by (rollout): memory O(CHUNK · S)."""


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

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Post-softmax attention of the queries at ``index`` [B, Q]: float32 [B, H, Q, S]."""
        index = index.to(self.keys.device)
        queries = take(self.queries.transpose(1, 2), index).transpose(1, 2)
        groups = queries.shape[1] // self.keys.shape[1]
        keys = self.keys.repeat_interleave(groups, dim=1) if groups > 1 else self.keys
        logits = (queries @ keys.transpose(2, 3)).float() * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.bias is not None:
            logits = logits + _rows_of(self.bias, index).float()
        if self.mask is not None and self.mask.ndim == 4 and self.mask.dtype != torch.bool:
            logits = logits + self._mask_rows(index)
        else:
            logits = logits.masked_fill(~self.visible(index)[:, None], torch.finfo(torch.float32).min)
        if self.sinks is not None:
            own = self.sinks.ndim == 4
            sink = _rows_of(self.sinks, index) if own else self.sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
            return torch.cat([logits, sink.float()], dim=-1).softmax(-1)[..., :-1]
        return logits.softmax(-1)

    def propagate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [B, Q, S] times the head-mean attention matrix [S, S] of this layer, in chunks of its query rows."""
        total = torch.zeros_like(rows)
        for start in range(0, rows.shape[2], CHUNK):
            part = rows[:, :, start : start + CHUNK]
            index = torch.arange(start, start + part.shape[2], device=rows.device).expand(rows.shape[0], -1)
            total = total + part @ self.rows(index).mean(1)
        return total

    def _mask_rows(self, index: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        return _rows_of(self.mask.expand(index.shape[0], -1, -1, -1)[..., : self.keys.shape[2]], index)


def _rows_of(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` [B, Q] of x [B, H, S, K]: [B, H, Q, K]."""
    return take(x.transpose(1, 2), index).transpose(1, 2)
