"""The decoder's forward pass over packed rows, with a mask of its own for every layer.

Computes what transformers' Llama layers compute (a test compares the two). B batch, S sequence, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

Entering = Callable[[int, torch.Tensor], None]  # layer, its input [B, S, D]
Seen = Callable[[int, torch.Tensor], None]  # layer, its attention weights [B, H, S, S]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [..., S, d]; ``cos`` and ``sin`` are [B, 1, S, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rms_norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    """The layer norm of fp32 [..., D], without the casts."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight


def decoder_layer(
    layer: LlamaDecoderLayer,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor,
    head: int,
    seen: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """One layer [B, S, D] -> [B, S, D]; ``mask`` is additive [B, 1, S, S].

    The first ``head`` positions see none of the others, so their attention is computed apart. Attention runs in fp32,
    which is faster on CPUs than SDPA in bf16.
    """
    attention, width = layer.self_attn, x.shape[-1]
    normed = rms_norm(layer.input_layernorm, x)
    weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    qkv = F.linear(normed, weight).unflatten(-1, (3, -1, attention.head_dim)).permute(2, 0, 3, 1, 4)
    queries, keys = rotate(qkv[:2].float(), cos, sin)
    values = qkv[2].float()
    with torch.autocast("cpu", enabled=False):
        first = F.scaled_dot_product_attention(
            queries[:, :, :head], keys[:, :, :head], values[:, :, :head], attn_mask=mask[:, :, :head, :head]
        )
        rest = F.scaled_dot_product_attention(queries[:, :, head:], keys, values, attn_mask=mask[:, :, head:])
        mixed = torch.cat([first, rest], dim=2)
    if seen is not None:
        seen(((queries @ keys.transpose(-1, -2)) * attention.scaling + mask).softmax(-1))
    x = x + attention.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], width))
    normed, mlp = rms_norm(layer.post_attention_layernorm, x), layer.mlp
    gate, up = F.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])).chunk(2, dim=-1)
    return x + mlp.down_proj(F.silu(gate) * up)


def run_decoder(
    decoder: LlamaModel,
    embeddings: torch.Tensor,
    position_ids: torch.Tensor,
    mask_at: Callable[[int], torch.Tensor],
    head: int,
    entering: Entering | None = None,
    seen: Seen | None = None,
) -> torch.Tensor:
    """Hidden states after the final norm [B, S, D].

    ``mask_at(layer)`` is a bool mask [B, S, S] of what is visible; the first ``head`` positions are prefix and image.
    """
    cos, sin = decoder.rotary_emb(embeddings.float(), position_ids)
    cos, sin = (part[:, None, :, : part.shape[-1] // 2] for part in (cos, sin))
    x, additive = embeddings, {}
    for index, layer in enumerate(decoder.layers):
        allowed = mask_at(index)
        if id(allowed) not in additive:
            hidden = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            additive[id(allowed)] = hidden[:, None]
        if entering is not None:
            entering(index, x)
        look = None if seen is None else partial(seen, index)
        x = decoder_layer(layer, x, cos, sin, additive[id(allowed)], head, look)
    return decoder.norm(x)


def embed(
    model: LlavaForConditionalGeneration, prefix: torch.Tensor, features: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Embeddings [B, S, D] of prefix [P], tower features [B, N, C] and text [B, T]."""
    words = model.model.language_model.embed_tokens
    visual = model.model.multi_modal_projector(features)
    head = words(prefix).expand(len(ids), -1, -1)
    return torch.cat([head, visual.to(head.dtype), words(ids)], dim=1)
