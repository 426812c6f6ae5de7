"""torch's own counter of FLOPs, to hold the formulas against."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """A ``FlopCounterMode`` that also counts what torch's own (2.14) passes over: the fused attention of CPUs and the
    grouped products of experts.

    Like torch for its other fused kernels it counts all S² pairs, masked or not: the convention ``counter``.
    """

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    def experts(tokens: torch.Size, weights: torch.Size, *_: object, **__: object) -> int:
        return 2 * tokens[0] * weights[-2] * weights[-1]

    aten = torch.ops.aten
    more = {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten._grouped_mm: experts}
    return FlopCounterMode(display=False, custom_mapping=more)
