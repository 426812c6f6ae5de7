"""VTW: from one layer on no visual token stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("schedule", "withdraw_fitted")
@dataclass
class FittedWithdrawal(prunekit.CalibratedSchedule):
    """Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference (AAAI 2025,
    https://arxiv.org/abs/2405.05803): all visual tokens go before the first layer at which that moves the distribution
    of the first generated token by less than a threshold, on average over a few examples.

    Args:
        threshold: of the divergence KL(dense ‖ withdrawn) in nats. The curve is [depth - 1].
    """

    threshold: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise prunekit.PrunekitError(f"schedule.threshold must be above 0, not {self.threshold}")

    def measure(self, model, depth, batches) -> torch.Tensor:
        divergence = torch.zeros(depth - 1, dtype=torch.float64)
        for batch in batches:
            dense = first_token(model, batch)
            for layer in range(1, depth):
                schedule = prunekit.create("schedule", "withdraw", layer=layer)
                with prunekit.Pruner("random", "single", schedule)(model):
                    without = first_token(model, batch)
                divergence[layer - 1] += (dense.exp() * (dense - without)).sum().cpu()
        return divergence / sum(len(batch["input_ids"]) for batch in batches)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        curve = self.calibration(depth).curve.tolist()
        for layer, divergence in enumerate(curve, 1):
            if divergence < self.threshold:
                return (prunekit.Cut(layer, 0.0),)
        least = min(curve)
        raise prunekit.PrunekitError(f"schedule.threshold={self.threshold:g}: the least divergence is {least:.2g}")

    def own_ratio(self) -> float | None:
        return 0.0


def first_token(model, batch) -> torch.Tensor:
    """Log-probabilities [B, vocabulary] of the token behind each prompt, float64."""
    logits = model(**batch).logits
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    last = real.cumsum(1).argmax(1)
    return logits[torch.arange(len(last), device=last.device), last].double().log_softmax(-1)


# Nothing is scored. By default all go before the middle of the depth (layer 16 of 32); schedule.layer names another.
prunekit.compose("vtw", scorer="random", fusion="single", schedule="withdraw", positions="keep")
prunekit.compose("vtw_fitted", scorer="random", fusion="single", schedule="withdraw_fitted", positions="keep")
