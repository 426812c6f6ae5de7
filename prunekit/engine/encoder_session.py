"""A vision encoder on its own (a plain ViT of timm), pruned inside its blocks."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.engine.encoder_hooks import EncoderHooks
from prunekit.engine.mounted import Mounted, NotCopied, mark
from prunekit.engine.plan import EncoderPlan
from prunekit.engine.session import hold, release
from prunekit.families.vision import VisionTower
from prunekit.views.doubts import check_doubts
from prunekit.views.trace import Trace, TraceRecord
from prunekit.views.vision import VisionRecord


class EncoderSession(NotCopied):
    """One pruner applied to one encoder, from ``install`` to ``remove``."""

    def __init__(self, plan: EncoderPlan, tower: VisionTower, model: nn.Module) -> None:
        self.plan, self.model, self.tower = plan, model, tower
        self.trace = Trace()
        self._hooks = EncoderHooks(tower, plan)
        self._hooks.publish = self._publish
        self._marks: list[Mounted] = []

    def install(self) -> None:
        """Put the hooks on; a failure leaves the model untouched."""
        hold(self.model, self)
        try:
            self._hooks.install()
            self._marks = mark(self.model)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take everything off again. Idempotent."""
        for handle in self._marks:
            handle.remove()
        self._hooks.remove()
        release(self.model, self)

    def _publish(self, record: VisionRecord) -> None:
        check_doubts(record.doubts)
        tokens = torch.tensor(record.tokens)
        self.trace.publish(TraceRecord(record.cuts, tokens, tokens, record.index))
