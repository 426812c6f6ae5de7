"""FitPrune: in every layer as many tokens go as attention, measured on a few examples, can spare."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

import prunekit

STEPS = 64
"""The curve says what is lost where 0, 1/64, 2/64, … of the tokens go."""


@prunekit.register("scorer", "fitprune")
@dataclass
class FitPruneScorer(prunekit.Scorer):
    """Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models (AAAI 2025,
    https://arxiv.org/abs/2409.10197): attention received from visual tokens times attention received from the question.

    Args:
        heads: "max" or "mean" over heads.
    """

    heads: str = "max"

    sites = ("decoder",)
    uses_attention = True

    def __post_init__(self) -> None:
        self._sources = [prunekit.create("scorer", name, heads=self.heads) for name in ("visual", "instruction")]

    def received(self, view) -> torch.Tensor:
        """What each token receives from visual tokens, and from the question, [2, B, N]."""
        return torch.stack([source.score(view) for source in self._sources])

    def score(self, view) -> torch.Tensor:
        return self.received(view).prod(0)

    def macs(self, work) -> float:
        return sum(source.macs(work) for source in self._sources)


@dataclass
class Loss(FitPruneScorer):
    """Scores as usual, and notes by layer what the attention of each sample loses where the lowest scores go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lost: dict[int, list[torch.Tensor]] = {}

    def score(self, view) -> torch.Tensor:
        received = self.received(view).double()
        grid = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device=received.device)
        for b, alive in enumerate(view.alive):
            if n := int(alive.sum()):
                mass = received[:, b, alive]
                mass = mass[:, mass.prod(0).argsort()].cumsum(1)
                mass = torch.nn.functional.pad(mass / mass[:, -1:], (1, 0))  # of the first 0 … n tokens, [2, n + 1]
                low = (grid * n).long().clamp(max=n - 1)
                lost = torch.lerp(mass[:, low], mass[:, low + 1], grid * n - low)
                self.lost.setdefault(view.layer, []).append(lost.cpu())
        return received.prod(0)


@prunekit.register("schedule", "fitprune")
@dataclass
class FitPrune(prunekit.CalibratedSchedule):
    """Before every layer the tokens go whose removal moves neither distribution of attention in the layer before it,
    from visual tokens and from the question, by more than ε on average: by as much as they have of it, their share.

    ε is the largest at which the keep ratio is left behind the last layer. The curve is [depth - 1, 2, 65].
    """

    def measure(self, model, depth, batches) -> torch.Tensor:
        loss, every = Loss(), prunekit.create("schedule", "progressive", layers=list(range(1, depth)))
        with prunekit.Pruner(loss, "single", every, keep_ratio=1.0)(model):
            for batch in batches:
                model(**batch)
        return torch.stack([torch.stack(loss.lost[layer]).mean(0) for layer in range(depth - 1)])

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        shares = shares_left(self.calibration(depth), keep_ratio)
        return tuple(prunekit.Cut(layer, share) for layer, share in enumerate(shares, 1))


@functools.lru_cache(maxsize=1024)
def shares_left(calibration, keep_ratio: float) -> tuple[float, ...]:
    """The share of the tokens that is left before each of the layers 1, 2, …, ``keep_ratio`` before the last."""
    lost = calibration.curve.amax(1).tolist()
    place = (1 - keep_ratio) * STEPS
    low = min(int(place), STEPS - 1)
    limit = min(row[low] + (place - low) * (row[low + 1] - row[low]) for row in lost)
    left, shares = 1.0, []
    for row in lost:
        step = max(k for k in range(STEPS + 1) if row[k] <= limit)
        rise = row[step + 1] - row[step] if step < STEPS else 0
        spare = step + ((limit - row[step]) / rise if rise else 0)
        left = max(keep_ratio, min(left, 1 - spare / STEPS))
        shares.append(left)
    return (*shares[:-1], keep_ratio)


prunekit.compose("fitprune", scorer="fitprune", fusion="single", schedule="fitprune", positions="keep", keep_ratio=0.25)
