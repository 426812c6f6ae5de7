"""The modules of trained compressors: learned queries that read any number of visual tokens.

Shapes: B samples, N visual tokens (padded), M queries, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def attention(width: int, heads: int) -> nn.MultiheadAttention:
    """Multi-head attention over [B, tokens, width]."""
    return nn.MultiheadAttention(width, heads, batch_first=True)


def feed_forward(width: int, ratio: int) -> nn.Sequential:
    """Two layers with a GELU between."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class PerceiverLayer(nn.Module):
    """Latents read the visual tokens and themselves, then a feed-forward; normalised before each."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_latents, self.norm_forward = (nn.LayerNorm(width) for _ in range(3))
        self.attend, self.forward_ = attention(width, heads), feed_forward(width, ratio)

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """Latents [B, M, D] that have read the tokens [B, N, D], but for those where ``closed`` [B, N] is True."""
        x_BMD = self.norm_latents(latents)
        context_BKD = torch.cat([self.norm_tokens(tokens), x_BMD], dim=1)
        closed_BK = torch.cat([closed, closed.new_zeros(x_BMD.shape[:2])], dim=1)
        read_BMD = self.attend(x_BMD, context_BKD, context_BKD, key_padding_mask=closed_BK, need_weights=False)[0]
        latents = latents + read_BMD
        return latents + self.forward_(self.norm_forward(latents))


class QFormerLayer(nn.Module):
    """Queries read each other, then (in layers with ``cross``) the visual tokens, then a feed-forward; normalised after
    each, as in BERT."""

    def __init__(self, width: int, heads: int, ratio: int, cross: bool) -> None:
        super().__init__()
        self.attend, self.norm_attend = attention(width, heads), nn.LayerNorm(width)
        self.read = attention(width, heads) if cross else None
        self.norm_read = nn.LayerNorm(width) if cross else None
        self.forward_, self.norm_forward = feed_forward(width, ratio), nn.LayerNorm(width)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """Queries [B, M, D] that have read the tokens [B, N, D], but for those where ``closed`` [B, N] is True."""
        queries = self.norm_attend(queries + self.attend(queries, queries, queries, need_weights=False)[0])
        if self.read is not None and self.norm_read is not None:
            read_BMD = self.read(queries, tokens, tokens, key_padding_mask=closed, need_weights=False)[0]
            queries = self.norm_read(queries + read_BMD)
        return self.norm_forward(queries + self.forward_(queries))


class Resampler(nn.Module):
    """Learned queries [M, D] through layers that read the visual tokens: [B, N, D] -> [B, M, D]."""

    def __init__(self, width: int, queries: int, layers: int, make_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.layers = nn.ModuleList(make_layer(number) for number in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Queries [B, M, D] that have read the tokens [B, N, D] of ``alive`` [B, N]; a sample without any reads its
        padding, for want of better."""
        closed_BN = ~alive & alive.any(1, keepdim=True)
        queries_BMD = self.queries.expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries_BMD = layer(queries_BMD, tokens, closed_BN)
        return self.norm(queries_BMD)
