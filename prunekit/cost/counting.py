"""torch's own counter of FLOPs, to hold the formulas against."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """A ``FlopCounterMode`` that also counts the fused attention of CPUs, which torch's own (2.14) passes over.

    Like torch for its other fused kernels it counts all S² pairs, masked or not: the convention ``counter``.
    """

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})
