"""Queries and keys before the rotary embedding: what a layer's own projections made, checked against what it uses.

The last of ``q_norm`` and ``q_proj`` that runs before the attention function gives the queries, likewise the keys.
Whether nothing but a rotary embedding lies between the two is not taken on trust. A rotary embedding turns a token's
query and key by the same angles, so it leaves alone, but for a constant factor, the length of each query and key and
the product of a query with the key of the same token. If these three agree, the two differ by such a turn; if they do
not, the layer does something that prunekit does not know, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunekit.engine.forward_state import ThreadState
from prunekit.engine.precision import in_float32
from prunekit.errors import PrunekitError

SOURCES = {"q_proj": "query", "q_norm": "query", "k_proj": "key", "k_norm": "key"}
"""Modules of an attention layer whose output is its queries or keys, in whatever of the usual layouts."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far lengths and products may differ, as a share of the largest: rounding in the model's own precision."""


def note_projections(module: nn.Module, thread: ThreadState) -> list[Any]:
    """Hooks on the projections of one attention layer, which note their outputs for ``unrotated``."""

    def noting(kind: str) -> Any:
        def hook(_: nn.Module, args: object, output: torch.Tensor) -> None:
            thread.projected = {**thread.projected, kind: output}

        return hook

    def note_angles(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if (pair := kwargs.get("position_embeddings")) is not None:
            thread.projected = {**thread.projected, "cos": pair[0], "sin": pair[1]}  # type: ignore[index]

    children = dict(module.named_children())
    hooks = [children[name].register_forward_hook(noting(kind)) for name, kind in SOURCES.items() if name in children]
    return [*hooks, module.register_forward_pre_hook(note_angles, with_kwargs=True)]


def angles_of(noted: Mapping[str, torch.Tensor], query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines [B, S, r] of the rotary embedding of a layer, None where it is given none of this shape."""
    if "cos" not in noted or noted["cos"].ndim != 3 or noted["cos"].shape[1] != query.shape[2]:
        return None
    batch = query.shape[0]
    return noted["cos"].expand(batch, -1, -1).float(), noted["sin"].expand(batch, -1, -1).float()


def unrotated(
    where: str, noted: Mapping[str, torch.Tensor], query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [B, H, S, d] and keys [B, H_kv, S, d] before the rotary embedding, from what the projections made.

    Args:
        where: the layer, for the error.
        noted: outputs of the projections: "query" and "key".
        query, key: what the layer attends with.

    Raises:
        PrunekitError: where the layer's own projections are not known, or more than a rotary embedding follows them.
    """
    for queries in _layouts(noted.get("query"), query):
        for keys in _layouts(noted.get("key"), key):
            if _is_turned(queries, keys, query, key):
                queries, keys = in_float32(queries, keys)
                return queries, keys
    raise PrunekitError(
        f"{where}: queries and keys before the rotary embedding are not known, because its attention is not one of "
        "q_proj, k_proj, norms of these and a rotary embedding"
    )


def _layouts(projected: torch.Tensor | None, used: torch.Tensor) -> list[torch.Tensor]:
    """What a projection made, in the shape [B, H, S, d] of what the layer uses: every way to read it so."""
    if projected is None or projected.numel() != used.numel():
        return []
    batch, heads, size, width = used.shape
    tokens_first = projected.reshape(batch, size, heads, width).transpose(1, 2)
    return [tokens_first, projected] if projected.shape == used.shape else [tokens_first]


def _is_turned(queries: torch.Tensor, keys: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether ``query`` and ``key`` are ``queries`` and ``keys``, each token's turned by angles of its own and scaled
    alike."""
    groups = queries.shape[1] // keys.shape[1]
    before, after = (
        _invariants(q.double(), k.double().repeat_interleave(groups, 1)) for q, k in ((queries, keys), (query, key))
    )
    tolerance = TOLERANCE.get(query.dtype, 1e-4)
    (q0, k0, product0), (q1, k1, product1) = before, after
    scale_q, scale_k = q1.sum() / q0.sum().clamp(min=1e-30), k1.sum() / k0.sum().clamp(min=1e-30)
    pairs = ((q0 * scale_q, q1), (k0 * scale_k, k1), (product0 * scale_q * scale_k, product1))
    limits = (q1.amax(), k1.amax(), q1.amax() * k1.amax())
    return all(bool(((a - b).abs() <= tolerance * limit).all()) for (a, b), limit in zip(pairs, limits, strict=True))


def _invariants(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a turn of a token's query and key leaves alone, [B, H, S] each: their lengths and their product."""
    return q.norm(dim=-1), k.norm(dim=-1), (q * k).sum(-1)
