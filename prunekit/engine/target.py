"""A plan on a model: what the engine's functions are handed. ``Session`` is one, with hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunekit.engine.cache import PrunedLayerMixin
from prunekit.engine.encoder_hooks import EncoderHooks
from prunekit.engine.forward_state import DecodeStep, ThreadState
from prunekit.engine.media_watch import MediaWatch
from prunekit.engine.plan import Plan
from prunekit.families import Family
from prunekit.families.vision import vision_of


class Target:
    """A plan, the model that it is for, and the forward passes that run on it.

    Attributes:
        plan: what is removed.
        family: the model, seen through what prunekit needs of it.
        tower: its vision encoder, where the plan has something to do there.
        encoder: the hooks inside it.
        media: what the model's images and videos are, where a component reads them or their places.
        thread: the state of the calling thread.
        warned: whether the budget of sparse attention has been named.
        implementations: the attention implementations of decoder and encoder that were checked last.
    """

    def __init__(self, plan: Plan, family: Family) -> None:
        self.plan, self.family = plan, family
        self.tower = None if plan.encoder is None else vision_of(family)
        self.media = MediaWatch(family.core) if plan.notes_media or plan.encoder is not None else None
        self.encoder: EncoderHooks | None = None
        if plan.encoder is not None and self.tower is not None:
            self.encoder = EncoderHooks(self.tower, plan.encoder, self.media)
        self.thread = ThreadState()
        self.warned = False
        self.implementations = self.current_implementations()

    def current_implementations(self) -> tuple[str, str]:
        """The names of the attention implementations of decoder and encoder, as they are now."""
        return self.family.implementation, "" if self.tower is None else self.tower.implementation

    def check_masks(self) -> None:
        """Raise for an attention implementation whose masks cannot be what this target needs them to be."""

    def inside(self) -> bool:
        """Whether the calling thread is in a forward pass of this session's model."""
        return self.thread.depth > 0

    @contextmanager
    def looking_ahead(self) -> Iterator[None]:
        """While a layer runs up to its attention function alone: its tap raises ``Peeked`` there."""
        self.thread.looks_ahead = True
        try:
            yield
        finally:
            self.thread.looks_ahead = False

    @property
    def positions(self) -> torch.Tensor | None:
        """The position ids [1 or B, S] of the running forward pass (M-RoPE: triples), as the model gave them to its
        rotary embedding."""
        return None if self.thread.forward is None else self.thread.forward.positions

    @property
    def cache_layer(self) -> PrunedLayerMixin | None:
        """The pruned cache layer of the decoder layer that runs, in a decode step."""
        forward = self.thread.forward
        return forward.cache_layer if isinstance(forward, DecodeStep) else None

    @property
    def adjusts(self) -> bool:
        """Whether the family corrects queries, so that every layer from the cut on is tapped."""
        return type(self.family).adjust_query is not Family.adjust_query
