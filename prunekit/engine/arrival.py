"""Visual tokens on their way from the vision encoder into the decoder's sequence."""

from __future__ import annotations

import torch

from prunekit.engine.prefill import Prefill
from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens
from prunekit.views.trace import CutRecord
from prunekit.views.vision import VisionRecord, VisionView


def arrive(record: VisionRecord | None, state: Prefill, hidden: torch.Tensor, axis: int) -> torch.Tensor:
    """What the encoder left reaches layer 0: hidden states without the visual tokens that went inside it.

    Raises:
        PrunekitError: where the encoder has not run under this pruner.
    """
    if record is None:
        raise PrunekitError(
            "the vision encoder did not run under this pruner: give it pixels, not features made before"
        )
    source = record.source(state.layout).to(state.kept.device)
    state.vision = VisionView(record, source)
    state.doubts += record.doubts
    for cut in record.cuts:
        kept = state.vision.gather(cut.kept.flatten())
        scores = state.vision.gather(cut.scores.flatten()).masked_fill(~state.kept, torch.nan)
        state.cuts.append(CutRecord(cut.site, cut.layer, kept, scores, sources=_within_samples(cut, source)))
    if not record.cuts or bool(record.cuts[-1].kept.all()):
        return hidden
    share = int(record.cuts[-1].kept[0].sum()) / record.cuts[-1].kept.shape[1]
    counts = state.layout.counts
    lengths = tuple(s - n + round(share * n) for s, n in zip(state.layout.lengths, counts, strict=True))
    return gather_tokens(hidden, state.shorten(state.cuts[-1].kept, lengths), axis)


def _within_samples(cut: CutRecord, source: torch.Tensor) -> torch.Tensor | None:
    """An encoder's map of sources [T, P] for the visual tokens of each sample, [B, N], whose rows are contiguous."""
    if cut.sources is None:
        return None
    images, size = cut.sources.shape
    first = torch.arange(images, device=cut.sources.device)[:, None] * size
    rows = torch.where(cut.sources < 0, -1, cut.sources + first).flatten()
    target = rows[source.clamp(min=0)]
    return torch.where((source < 0) | (target < 0), -1, target - source[:, :1])
