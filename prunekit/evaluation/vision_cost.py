"""What a method saves inside the vision encoder, for the cost ratio that counts it."""

from __future__ import annotations

from prunekit.cost import PrefillCost


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
