"""The model as it trains: the LVLM under its pruner, with the parameters of both."""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from torch import nn

from prunekit.engine.gating import GateCutter
from prunekit.engine.session import Session
from prunekit.errors import PrunekitError
from prunekit.families import family_of, unwrap
from prunekit.pruning.pruner import Pruner
from prunekit.train.batches import IGNORE
from prunekit.train.gate import SigmoidGate
from prunekit.train.keep import KeepSchedule
from prunekit.train.kinds import open_parts
from prunekit.train.penalties import penalty
from prunekit.train.settings import NO_GATE, Settings
from prunekit.views.trace import Trace


class TrainedModel(nn.Module):
    """Forward gives the two parts of the loss; parameters of the model and of the pruner side by side, so that
    optimiser, checkpoints and processes treat them alike.

    Args:
        model: the LVLM; all that does not train is frozen in it.
        pruner: what prunes it, and gets what is trained of it.

    Attributes:
        session: the pruner on the model, on until ``close``.
        keep_ratio: that of the current step.
        keep: the keep ratio of each step, None where a count or a budget says how much stays.
    """

    accepts_loss_kwargs = True
    """For the Trainer: the loss is a sum over tokens divided by their number in the whole accumulated batch."""

    def __init__(self, model: nn.Module, pruner: Pruner, settings: Settings, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.pruner, self.keep_ratio = settings, pruner, pruner.keep_ratio
        self.model, self.own, self.module = open_parts(model, pruner, settings, seed)
        self.keep = make_keep(pruner, settings, seed)
        self.gate: SigmoidGate | None = None
        family = family_of(model)
        plan = pruner.plan(family)
        if settings.gate == NO_GATE or settings.kind == "compressor":
            self.session = Session(plan, family)
        else:
            self.gate = SigmoidGate(settings.gate, settings.temperature, settings.gate_clip)
            self.session = Session(plan, family, cutter=GateCutter(plan, self.gate))
        self.logits_to_keep = "logits_to_keep" in inspect.signature(type(unwrap(model)).forward).parameters
        if settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.session.install()

    @property
    def trace(self) -> Trace:
        """What the pruner did in the latest forward pass."""
        return self.session.trace

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def at(self, step: int, steps: int) -> None:
        """Set keep ratio and temperature for a step (from 0) of ``steps``."""
        if self.keep is not None and self.keep.varies:
            self.keep_ratio = self.keep.ratio(step, steps)
            quota = replace(self.session.plan.quota, share=self.keep_ratio)  # type: ignore[type-var]
            self.session.plan = replace(self.session.plan, quota=quota)
        if self.gate is not None:
            self.gate.temperature = self.settings.temperature_at(step, steps)

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """``lm``: the cross-entropy summed over the tokens with labels [B, S]; ``tokens``: their number; ``sparsity``:
        the penalty, a mean over the batch."""
        self.session.prompt = labels == IGNORE
        last = int((labels != IGNORE).any(0).nonzero().min())
        kept = labels.shape[1] - last
        shortened = {"logits_to_keep": kept + 1} if self.logits_to_keep else {}
        logits = self.model(**inputs, **shortened, use_cache=False).logits[:, -kept - 1 : -1].float()
        wanted = labels[:, -kept:]
        lm = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE, reduction="sum")
        return {
            "lm": lm,
            "tokens": (wanted != IGNORE).sum(),
            "sparsity": penalty(self.settings.penalty, self.trace.cuts),
        }

    def close(self) -> None:
        """Take the pruner off."""
        self.session.remove()


def make_keep(pruner: Pruner, settings: Settings, seed: int) -> KeepSchedule | None:
    """The keep ratio of each step; raises where steps are to differ and the pruner's ratio is fixed."""
    if pruner.keep_ratio is not None:
        keep = KeepSchedule(pruner.keep_ratio, settings.keep_warmup, list(settings.keep_random), seed)
        if not keep.varies or pruner.schedule.own_ratio() is None:
            return keep
    elif not settings.keep_warmup and not settings.keep_random:
        return None
    name = "keep_random" if settings.keep_random else "keep_warmup"
    raise PrunekitError(f"train.{name} needs a keep_ratio to vary: not schedule.ratios, keep_tokens or a budget")
