"""Reducers: what becomes of the tokens that do not stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.components.base import Reducer
from prunekit.registry import register


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
    """

    changes_tokens = True

    def reduce(
        self, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        units = torch.nn.functional.normalize(tokens.float(), dim=-1)
        cosine_BNN = (units @ units.transpose(1, 2)).masked_fill(~kept[:, None, :], -torch.inf)
        goes = alive & ~kept
        itself = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        target = torch.where(goes, cosine_BNN.argmax(-1), itself)
        mass = sizes * alive
        total = torch.zeros_like(mass).scatter_add(1, target, mass)
        weighted = (tokens * mass[..., None].to(tokens.dtype)).to(tokens.dtype)
        summed = torch.zeros_like(tokens).scatter_add(1, target[..., None].expand_as(tokens), weighted)
        merged = summed / total.clamp(min=1)[..., None].to(tokens.dtype)
        return torch.where(kept[..., None], merged, tokens), torch.where(kept, total, sizes)
