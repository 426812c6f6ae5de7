"""What a user gets back: the cuts of the latest prefill, and the tokens that each layer processed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens


@dataclass(frozen=True)
class CutRecord:
    """One cut as it happened.

    Attributes:
        site: "vision", "input" or "decoder".
        layer: the decoder layer before which the tokens went; at site "vision" the encoder's block inside which.
        kept: visual tokens that stay after it, cumulative, bool [B, N] in sequence order, padded with False. Includes
            ``added``.
        scores: float [B, N], NaN where a token was already gone or pads.
        added: tokens that a reducer made of those that went, bool [B, N], each under the name of one of them; None if
            there are none.
        sources: the visual token under whose name each lives on after merging, long [B, N], -1 where it is lost; None
            where nothing keeps a map.
    """

    site: str
    layer: int
    kept: torch.Tensor
    scores: torch.Tensor
    added: torch.Tensor | None = None
    sources: torch.Tensor | None = None


@dataclass
class TraceRecord:
    """What a pruner did in one prefill. Its fields are those of ``Trace``, with their shapes."""

    cuts: list[CutRecord] = field(default_factory=list)
    tokens_per_layer: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    vision_tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    index: torch.Tensor | None = None


class OwnRecord(threading.local):
    """What the calling thread's latest prefill did, None before it has run one."""

    record: TraceRecord | None = None


class Trace:
    """What a pruner did in the latest prefill of the calling thread; a thread that ran none sees the latest of all.

    Attributes:
        cuts: the cuts in order.
        tokens_per_layer: real tokens that each decoder layer processed, long [layers, B]; of an encoder alone (timm)
            those of its blocks.
        vision_tokens: tokens that entered each block of the vision encoder, long [blocks, images], where it was
            watched.
        index: of an encoder alone, where the token that stands for each patch is in its output, long [images, P].
    """

    def __init__(self) -> None:
        self._latest, self._own = TraceRecord(), OwnRecord()

    def publish(self, record: TraceRecord) -> None:
        """Note what the calling thread's prefill did."""
        self._latest = self._own.record = record

    @property
    def _record(self) -> TraceRecord:
        return self._latest if self._own.record is None else self._own.record

    @property
    def cuts(self) -> list[CutRecord]:
        return self._record.cuts

    @property
    def tokens_per_layer(self) -> torch.Tensor:
        return self._record.tokens_per_layer

    @property
    def vision_tokens(self) -> torch.Tensor:
        return self._record.vision_tokens

    @property
    def index(self) -> torch.Tensor | None:
        return self._record.index

    def unmerge(self, tokens: torch.Tensor) -> torch.Tensor:
        """An encoder's output [T, M, C] with a token for every patch again, [T, P, C]: merged ones share theirs, what
        is lost has zeros (ToMe, ICLR 2023, section 3).

        Raises:
            PrunekitError: where no encoder has run on its own.
        """
        if self.index is None:
            raise PrunekitError("unmerge: no encoder has run on its own under this pruner")
        return gather_tokens(tokens, self.index.clamp(min=0)) * (self.index >= 0)[..., None].to(tokens.dtype)
