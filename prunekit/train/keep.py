"""How much stays in each training step: the target, a warm-up from everything to it, or a draw among several ratios."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from prunekit.errors import PrunekitError


@dataclass
class KeepSchedule:
    """The keep ratio of a step.

    Args:
        target: the pruner's keep ratio.
        warmup: over this share of the steps the ratio falls from 1 to the target along a cosine, as EViT trains (ICLR
            2022, section 4.1: the keep rate is gradually reduced).
        among: instead of the target one of these is drawn for each step, so that one model serves many budgets; the
            same in all processes and micro-batches of a step, and again after a resumption.
        seed: of the draws.
    """

    target: float
    warmup: float = 0.0
    among: list[float] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise PrunekitError(f"train.keep_warmup must lie in [0, 1], not {self.warmup}")
        for ratio in self.among:
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
                raise PrunekitError(f"train.keep_random must list ratios in (0, 1], not {ratio!r}")

    @property
    def varies(self) -> bool:
        """Whether steps differ."""
        return bool(self.among) or self.warmup > 0

    def ratio(self, step: int, steps: int) -> float:
        """The keep ratio of ``step`` (from 0) of ``steps``."""
        target = random.Random(f"keep/{self.seed}/{step}").choice(self.among) if self.among else self.target
        end = self.warmup * steps
        if step >= end:
            return target
        return target + (1 - target) * 0.5 * (1 + math.cos(math.pi * step / end))
