"""What a session remembers of a thread: the forward pass that runs, and what one pass leaves for the next."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.engine.cache import PrunedLayerMixin
from prunekit.engine.prefill import Prefill
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.doubts import Doubt


@dataclass
class DensePass:
    """A prefill without visual tokens: it runs as it is. ``positions`` are as in ``Prefill``."""

    layout: PromptLayout
    positions: torch.Tensor | None = None


@dataclass
class DecodeStep:
    """New tokens on a KV cache.

    Attributes:
        unmasked_is_exact: whether a layer that is given no mask needs nothing from prunekit.
        positions: position ids [1 or B, Q] (M-RoPE: triples) as the model gave them to its rotary embedding.
        cache_layer: the pruned cache layer of the decoder layer that runs, None where it was not pruned.
        arguments: what layers of one sequence are given instead of the model's arguments, made once for all of them.
    """

    unmasked_is_exact: bool
    positions: torch.Tensor | None = None
    cache_layer: PrunedLayerMixin | None = None
    arguments: dict[tuple[Any, ...], Any] = field(default_factory=dict)


class ThreadState(threading.local):
    """The state of one session in the calling thread.

    Attributes:
        depth: how many forward passes of the core model are running.
        forward: the latest of them, None before it is known what it is.
        looks_ahead: whether a layer runs up to its attention function alone.
        embedded_ids: token ids [B, S] that the input embeddings have seen, for models whose decoder gets embeddings.
        latest_tokens: ids [B, S] or embeddings [B, S, D] of the previous prefill whose prompt's end nobody told.
        projected: what the projections of the running attention module made, by "query" and "key", last one counts.
        doubts: those of the latest prefill, until somebody waits for the device anyway.
    """

    depth: int = 0
    forward: Prefill | DecodeStep | DensePass | None = None
    looks_ahead: bool = False
    embedded_ids: torch.Tensor | None = None
    latest_tokens: torch.Tensor | None = None
    projected: dict[str, torch.Tensor] = {}  # noqa: RUF012  replaced, never changed
    doubts: tuple[Doubt, ...] = ()
