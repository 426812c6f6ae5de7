"""FlowCut: inside the encoder, every second block lets go of what little information flows from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "flowcut")
@dataclass
class FlowCut(prunekit.Scorer):
    """FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models (NeurIPS 2025,
    https://arxiv.org/abs/2505.19536, section 4), as the authors' code has it.

    The score of a patch is what the CLS token attends to by queries and keys, plus what it would attend to by values,
    each with sum 1 over the patches that stand, times the L1 norm of the patch's head-mean value. Without a CLS token
    the mean query stands in for its query, and values have no say beyond the norm (as in the code for Qwen2-VL).
    """

    sites = ("vision",)
    uses_attention = uses_values = True

    def score(self, view) -> torch.Tensor:
        values = view.values
        if view.has_cls:
            looks = view.attention("cls").mean(1)[:, 0]
            alike = (values[:, :, :1] @ values.transpose(2, 3)).softmax(-1).mean(1)[:, 0]
            flow = shares(view, looks) + shares(view, alike)
        else:
            mean = view.queries.mean(2, keepdim=True)
            flow = shares(view, (mean @ view.keys.transpose(2, 3) * view.inputs.scaling).softmax(-1).mean(1)[:, 0])
        return flow * view.visual(values.mean(1)).abs().sum(-1)

    def macs(self, work) -> float:
        return 2 * work.row_macs(1)


def shares(view, row: torch.Tensor) -> torch.Tensor:
    """The part of a row [T, S] that each standing patch has of their sum, [T, P]."""
    row = view.visual(row) * view.alive
    return row / row.sum(1, keepdim=True)


@prunekit.register("fusion", "halving")
@dataclass
class Halving(prunekit.Fusion):
    """All blocks or layers so far, each one counting half as much as the next: s ← s / 2 + new / 2, from the first one
    on (FlowCut, section 4)."""

    def layers(self, cut: int, previous: int) -> list[int]:
        return list(range(cut))

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        total = evidence[0]
        for scores in evidence[1:]:
            total = 0.5 * total + 0.5 * scores
        return total


@prunekit.register("schedule", "flowcut")
@dataclass
class EverySecondBlock(prunekit.Schedule):
    """Cuts inside every second block of the encoder, the last one before the block that the projector reads.

    Of n patches round((n - K) / √r · (1 - entropy²)) go, r blocks before the last cut, which leaves the budget K.

    Args:
        entropy: that of the CLS token's attention, as a fraction of the largest possible. The authors measure it in
            each block; here every image keeps the same number, so that it is an option.
    """

    entropy: float = 0.8

    sites = ("vision",)

    def __post_init__(self) -> None:
        prunekit.check_interval("schedule.entropy", self.entropy, "[0, 1]")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        return ()

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        last, keep, left, cuts = max(blocks - 2, 0), max(1, round(keep_ratio * patches)), patches, []
        for block in range(last % 2, last, 2):
            goes = round((left - keep) / (last - block) ** 0.5 * (1 - self.entropy**2))
            if goes:
                left -= goes
                cuts.append(prunekit.Cut(block, left / patches, "vision"))
        return (*cuts, prunekit.Cut(last, keep_ratio, "vision"))


prunekit.compose("flowcut", scorer="flowcut", fusion="halving", schedule="flowcut", positions="renumber")
