"""Proportional attention in the decoder: a merged token counts in attention like all that it stands for.

The logarithm of its size is added to the logits of its key, in every layer behind the merge and for every query: those
of the prompt, and those of the tokens that are generated on the cache (ToMe, ICLR 2023, section 3; PACT, CVPR 2025).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.engine.forward_state import DecodeStep
from prunekit.engine.guards import check_weights
from prunekit.engine.prefill import Prefill
from prunekit.engine.tap import AttentionOptions, Mask
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.tensors.masks import weigh_columns


def check_weighing(target: Target) -> None:
    """Raise for a decoder in whose attention the sizes of merged tokens cannot be put, naming what is in the way."""
    family, plan = target.family, target.plan
    check_weights(plan.reducer, family.implementation)
    for index in range(plan.first_layer, family.depth):
        reason = None
        if not family.attends(index) or family.mixes_and_attends(index):
            reason = "mixes tokens by more than attention"
        elif family.key_layers[index] != index:
            reason = f"borrows the keys of layer {family.key_layers[index]}"
        elif len(family.cache_slots[index]) > 1:
            reason = "has several attention modules"
        if reason is not None:
            name, where = plan.reducer.registered_name, f"layer {index} of '{family.model_type}'"
            raise PrunekitError(f"reducer '{name}' weighs attention by sizes: {where} {reason}")


def weighed(target: Target, module: nn.Module, mask: Mask, query: torch.Tensor, options: AttentionOptions) -> Mask:
    """The mask of an attention function for q [B, H, Q, d] with the logarithms of its keys' sizes; unchanged where
    nothing has merged."""
    forward, cache_layer = target.thread.forward, target.cache_layer
    if isinstance(forward, Prefill) and (logs_BS := forward.sequence.log_sizes) is not None:
        assert forward.sequence.index is not None
        bias_BK, number = logs_BS.gather(1, forward.sequence.index), forward.sequence.number
    elif isinstance(forward, DecodeStep) and cache_layer is not None and cache_layer.log_sizes is not None:
        bias_BK, number = cache_layer.lent_log_sizes, cache_layer.sequence
    else:
        return mask
    if mask is not None and mask.ndim != 4:
        raise PrunekitError(f"'{target.family.model_type}': sizes cannot be put into a mask of {mask.ndim} axes")
    memo: dict[tuple[Any, ...], Any] = forward.arguments
    key = ("weighed", id(mask), number, bias_BK.shape, query.dtype, query.device)
    if key not in memo:
        causal = options.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        memo[key] = mask, weigh_columns(mask, bias_BK.to(query.device), query.shape[2], query.dtype, causal)
    return memo[key][1]
