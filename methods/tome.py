"""ToMe: inside the encoder, pairs of like tokens merge a few at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "bipartite")
@dataclass
class Bipartite(prunekit.Scorer):
    """Token Merging: Your ViT But Faster (ICLR 2023, https://arxiv.org/abs/2210.09461, section 3): who merges.

    The tokens of a block at even places, the CLS token included, form the set A, those at odd places B. A patch in A
    has minus its largest key cosine to B (keys averaged over heads), so that the most similar go first; B stays.
    """

    sites = ("vision",)
    uses_attention = True

    def score(self, view) -> torch.Tensor:
        patches = in_sequence(view, view.alive)
        best = pairs(view).masked_fill(~patches[:, None, 1::2], -torch.inf).amax(-1)
        best = best.gather(1, (view.slots // 2).clamp(max=best.shape[1] - 1))
        return (-best).masked_fill(view.slots % 2 == 1, torch.inf)


def pairs(view) -> torch.Tensor:
    """Key cosines of the places of set A to those of set B, [T, A, B], once for each block."""

    def cosines() -> torch.Tensor:
        keys = view.keys.mean(1)
        return prunekit.ops.cosine(keys[:, ::2], keys[:, 1::2])

    return view.once("bipartite", cosines)


def in_sequence(view, patches: torch.Tensor) -> torch.Tensor:
    """Marks of patches [T, P] at their places in the block's sequence, bool [T, S]."""
    return prunekit.ops.scatter_where(patches, view.slots, patches, view.hidden_states.shape[1])


@prunekit.register("reducer", "bipartite")
@dataclass
class BipartiteMerge(prunekit.Reducer):
    """ToMe, section 3: what goes is averaged, by sizes, into the most similar token of the other set.

    The two sets are concatenated then, A before B. Outside an encoder it goes into the most similar token that stays.

    Args:
        proportional: add the logarithm of a token's size to its attention logits from then on (for encoders trained
            with supervision; off for MAE).
    """

    proportional: bool = True

    def reduce(self, *, view, tokens, sizes, kept, alive, **rest) -> prunekit.Reduced:
        target = self._target(view, kept, alive)
        order = view.slots % 2 if view.site == "vision" else None
        return prunekit.Reduced(
            *prunekit.ops.merge_into(tokens, sizes, target, kept, alive), sources=target, order=order
        )

    def _target(self, view, kept, alive) -> torch.Tensor:
        """What each token goes into, long [B, N]."""
        if view.site != "vision":
            return prunekit.ops.nearest(view.visual(view.hidden_states), kept)
        stays, cosine = in_sequence(view, kept), pairs(view)
        to_b = cosine.masked_fill(~stays[:, None, 1::2], -torch.inf).max(-1)
        to_a = cosine.masked_fill(~stays[:, ::2, None], -torch.inf).max(-2)  # should another scorer send B away
        first = stays.long().argmax(1, keepdim=True)
        place = torch.zeros_like(stays, dtype=torch.long)
        place[:, ::2] = torch.where(to_b.values > -torch.inf, 2 * to_b.indices + 1, first)
        place[:, 1::2] = torch.where(to_a.values > -torch.inf, 2 * to_a.indices, first)
        own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        patch = prunekit.ops.scatter_where(own, view.slots, alive, stays.shape[1])
        return patch.gather(1, place.gather(1, view.slots))


prunekit.compose(
    "tome", scorer="bipartite", fusion="single", schedule="every_block", reducer="bipartite", positions="renumber"
)
