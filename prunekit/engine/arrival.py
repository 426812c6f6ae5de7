"""Visual tokens on their way from the vision encoder into the decoder's sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.engine.prefill import Prefill
from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens
from prunekit.views.trace import CutRecord
from prunekit.views.vision import VisionRecord, VisionView, token_sources


def arrive(records: Sequence[VisionRecord], state: Prefill, hidden: torch.Tensor, axis: int) -> torch.Tensor:
    """What the runs of the encoder left reaches layer 0: hidden states [B, S, D], tokens on ``axis``, without the
    visual tokens that went inside it, [B, M, D].

    Raises:
        PrunekitError: where the encoder has not run under this pruner, and where tokens went in one of several runs.
    """
    if not records:
        raise PrunekitError(
            "the vision encoder did not run under this pruner: give it pixels, not features made before"
        )
    video_BS = state.media.videos(state.layout) if len(records) > 1 and state.media is not None else None
    source_BN = token_sources(records, state.layout, video_BS).to(state.kept.device)
    state.vision = VisionView(records, source_BN)
    state.doubts += [doubt for record in records for doubt in record.doubts]
    if len(records) > 1 and any(record.cuts for record in records):
        raise PrunekitError("images and videos in one batch: tokens cannot go inside the vision encoder")
    (record, *_) = records
    for cut in record.cuts:
        kept_BN = state.vision.gather(cut.kept.flatten())
        scores_BN = state.vision.gather(cut.scores.flatten()).masked_fill(~state.kept, torch.nan)
        state.cuts.append(CutRecord(cut.site, cut.layer, kept_BN, scores_BN, sources=_within_samples(cut, source_BN)))
    if not record.cuts or bool((kept_TP := record.cuts[-1].kept).all()):
        return hidden
    share = int(kept_TP[0].sum()) / kept_TP.shape[1]  # the same in every image
    counts = state.layout.counts
    lengths = tuple(s - n + round(share * n) for s, n in zip(state.layout.lengths, counts, strict=True))
    return gather_tokens(hidden, state.shorten(state.cuts[-1].kept, lengths), axis)


def _within_samples(cut: CutRecord, source_BN: torch.Tensor) -> torch.Tensor | None:
    """An encoder's map of sources [T, P] for the visual tokens of each sample, [B, N], whose rows are contiguous."""
    if cut.sources is None:
        return None
    images, size = cut.sources.shape
    first_T1 = torch.arange(images, device=cut.sources.device)[:, None] * size
    target_R = torch.where(cut.sources < 0, -1, cut.sources + first_T1).flatten()
    target_BN = target_R[source_BN.clamp(min=0)]
    return torch.where((source_BN < 0) | (target_BN < 0), -1, target_BN - source_BN[:, :1])
