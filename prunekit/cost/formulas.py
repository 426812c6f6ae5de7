"""The named formulas. All count multiply-accumulates (MACs); FLOPs are twice as many.

A layer of n tokens, width d, MLP width m:

- ``fastv``    4nd² + 2n²d + 2ndm: FastV (ECCV 2024, section 3.4), as most papers print it;
- ``gated``    4nd² + 2n²d + 3ndm: the same with the three MLP matrices that Llama-like decoders have;
- ``counter``  what is multiplied: every weight (grouped keys, chosen experts) once a token, and a full n² attention,
  as ``torch.utils.flop_counter`` counts it;
- ``exact``    ``counter`` with the causal attention halved: what a kernel that skips the masked half computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.cost.shapes import Stack
from prunekit.errors import check_choice

MLP_MATRICES = {"fastv": 2, "gated": 3}
CONVENTIONS = (*MLP_MATRICES, "counter", "exact")


def layer_macs(tokens: torch.Tensor, width: int, mlp_width: int, formula: str = "gated") -> torch.Tensor:
    """MACs of one layer for each entry of ``tokens`` (any shape), float64, by ``fastv`` or ``gated``."""
    check_choice("formula", formula, MLP_MATRICES)
    n = tokens.to(torch.float64)
    return 4 * n * width**2 + 2 * n**2 * width + MLP_MATRICES[formula] * n * width * mlp_width


def stack_macs(stack: Stack, tokens: Sequence[int], convention: str = "exact", causal: bool = True) -> float:
    """MACs of a stack whose layers process ``tokens`` each, all attending to all of them (``causal``: to earlier ones).

    Raises:
        PrunekitError: for an unknown convention.
    """
    check_choice("convention", convention, CONVENTIONS)
    if convention in MLP_MATRICES:
        return float(layer_macs(torch.tensor(tokens), stack.hidden, stack.mlp_width, convention).sum())
    half = 0.5 if causal and convention == "exact" else 1.0
    return float(sum(n * stack.token_macs(i) + half * n * n * stack.pair_macs(i) for i, n in enumerate(tokens)))


def decode_macs(stack: Stack, stored: Sequence[int], steps: int, convention: str = "exact") -> float:
    """MACs of ``steps`` decode steps on caches that hold ``stored`` keys in each layer: each new token meets all."""
    check_choice("convention", convention, CONVENTIONS)
    total = 0.0
    for layer, length in enumerate(stored):
        pairs = steps * length + steps * (steps + 1) // 2  # the token itself is among the keys of its step
        if convention in MLP_MATRICES:
            d, m = stack.hidden, stack.mlp_width
            total += steps * (4 * d**2 + MLP_MATRICES[convention] * d * m) + 2 * pairs * d
        else:
            total += steps * stack.token_macs(layer) + pairs * stack.pair_macs(layer)
    return total
