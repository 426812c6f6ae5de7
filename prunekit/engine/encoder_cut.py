"""A cut inside a block of the vision encoder: what the ``Cutter`` sees of a run, and how the run is shortened."""

from __future__ import annotations

import torch

from prunekit.components.base import Reduced
from prunekit.engine.cutter import Choice, CutSite
from prunekit.engine.encoder_run import EncoderRun
from prunekit.tensors.indexing import gather_tokens
from prunekit.views.trace import CutRecord


class EncoderCut(CutSite):
    """A cut between a block's attention and its MLP, where ``hidden`` [T, S, C] stands; every image keeps ``keep``."""

    def __init__(self, run: EncoderRun, hidden: torch.Tensor, layers: tuple[int, ...], keep: int) -> None:
        assert run.view is not None
        self.run, self.hidden, self.view = run, hidden, run.view
        self.layers, self.evidence, self.doubts = layers, run.evidence, run.record.doubts
        images = len(run.kept)
        self.standing, self.quota = [run.standing] * images, [min(keep, run.standing)] * images

    def tokens(self) -> torch.Tensor:
        return gather_tokens(self.hidden, self.run.index)

    def sizes(self) -> torch.Tensor:
        return self.run.sizes

    def sources(self) -> torch.Tensor | None:
        return self.run.sources

    def record(self, cut: CutRecord) -> None:
        self.run.record.cuts.append(cut)

    def leave(self) -> torch.Tensor:
        return self.hidden

    def shorten(self, stays: torch.Tensor, choice: Choice, reduced: Reduced | None) -> torch.Tensor:
        run, prefix = self.run, self.run.prefix
        tokens_TPC = self.tokens() if reduced is None else reduced.tokens
        order_TP = torch.zeros_like(run.index)
        if reduced is not None:
            run.sizes = run.sizes if reduced.sizes is None else reduced.sizes
            order_TP = order_TP if reduced.added is None else reduced.added.long()
            order_TP = order_TP if reduced.order is None else reduced.order
        sources_TP = run.record.cuts[-1].sources
        assert sources_TP is not None
        run.sources = sources_TP
        number_TM = run.shorten(stays, order_TP * (run.length + 1) + run.index, choice.counts[0])
        return torch.cat([self.hidden[:, :prefix], gather_tokens(tokens_TPC, number_TM)], dim=1)
