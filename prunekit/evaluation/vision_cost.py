"""What a method saves inside the vision encoder, for the cost ratio that counts it."""

from __future__ import annotations

import torch

from prunekit.cost import PrefillCost, layer_macs
from prunekit.families import Family
from prunekit.families.vision import vision_of


def encoder_saving(family: Family, tokens: list[int]) -> float:
    """MACs that an image's encoder layers save when ``tokens`` enter each block instead of all (formula ``fastv``).

    A block counts for what enters it, so that the MLP behind a cut inside it counts as whole.
    """
    tower, config = vision_of(family), family.config.vision_config  # type: ignore[union-attr]
    if tower.patches is None:
        return 0.0
    entered = torch.tensor([[tower.patches + tower.prefix] * len(tokens), tokens])
    macs = layer_macs(entered, config.hidden_size, config.intermediate_size, "fastv").sum(1)
    return float(macs[0] - macs[1])


def with_encoder_saving(cost: PrefillCost, saved: float | None, vision_macs: float | None) -> float | None:
    """``flops_ratio_with_vision`` less what was saved inside the encoders, None if nothing was watched there.

    Args:
        vision_macs: of the whole encoders of all rows, which both sides of the cost hold.
    """
    both, alone = cost.flops_ratio_with_vision, cost.flops_ratio
    if both is None or vision_macs is None or both == alone or saved is None:
        return both
    # (P + V) / (D + V) = both and P / D = alone give the dense cost D + V.
    dense = vision_macs * (1 - alone) / (both - alone)
    return both - saved / dense
