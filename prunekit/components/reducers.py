"""Reducers: what becomes of the tokens that do not stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.components.base import Reduced, Reducer
from prunekit.registry import register
from prunekit.tensors.merging import merge_into, nearest


@register("reducer", "drop")
@dataclass
class Drop(Reducer):
    """The rest is gone: removal equals masking."""


@register("reducer", "merge")
@dataclass
class Merge(Reducer):
    """Each token that goes is averaged into the kept token most similar to it, by size (ToMe, ICLR 2023, section 3).

    Similarity is the cosine of the hidden states entering the cut layer (of equal ones the earlier token); sizes carry
    over from cut to cut, so that after two cuts a token is still the mean of all that it stands for.

    Args:
        proportional: a token counts in the attention of later layers like all that it stands for.
    """

    proportional: bool = False

    def reduce(  # type: ignore[override]
        self, *, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor, **rest: object
    ) -> Reduced:
        target = nearest(tokens, kept)
        return Reduced(*merge_into(tokens, sizes, target, kept, alive), sources=target)
