"""A vision encoder on its own (a plain ViT of timm), pruned inside its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prunekit.engine.encoder import EncoderHooks
from prunekit.engine.encoder_run import EncoderPlan
from prunekit.engine.hooks import hold, release
from prunekit.engine.mounted import Mounted, NotCopied, mark
from prunekit.engine.state import Trace
from prunekit.engine.vision import VisionRecord
from prunekit.families.vision import timm_tower

if TYPE_CHECKING:
    from prunekit.pruner import Pruner


class EncoderSession(NotCopied):
    """One pruner applied to one encoder, from ``install`` to ``remove``."""

    def __init__(self, pruner: Pruner, model: nn.Module) -> None:
        from prunekit.planning import plan_encoder

        self.model, self.tower = model, timm_tower(model)
        self.plan: EncoderPlan = plan_encoder(pruner, self.tower)
        self.trace = Trace()
        self._hooks = EncoderHooks(pruner, self.tower, self.plan, frozenset())
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
        self.trace.cuts, self.trace.index = record.cuts, record.index
        self.trace.tokens_per_layer = self.trace.vision_tokens = torch.tensor(record.tokens)
