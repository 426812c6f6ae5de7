"""VisionZip: the patches that the CLS token looks at, and a few tokens that gather the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("reducer", "contextual")
@dataclass
class Contextual(prunekit.Reducer):
    """VisionZip: Longer is Better but Not Necessary in Vision Language Models (CVPR 2025,
    https://arxiv.org/abs/2412.04467, section 3), blind to the question.

    Of a budget of K, c contextual tokens are made of what is not selected: every (rest // c)-th of it, in raster order,
    is a target; every other goes to the target of the largest key cosine; a contextual token is its target plus the
    mean of what came to it (as the authors' code has it: its norm about doubles). At the input of a model whose
    encoder has a CLS token, this token is one of the rest of the budget and stands first. Keys are those of the encoder
    layer that the projector reads, averaged over heads; inside the decoder hidden states stand in for them.

    Args:
        context: c / K, rounded; 10 of 64 in the paper's presets (54 + 10, 108 + 20, 162 + 30).
        cls: whether the CLS token is kept where there is one.
    """

    context: float = 10 / 64
    cls: bool = True

    acts_before_projector = True

    def __post_init__(self) -> None:
        prunekit.check_interval("reducer.context", self.context, "[0, 1)")

    def split(self, view, standing: int, keep: int) -> tuple[int, int]:
        added = min(round(self.context * keep) + int(self._has_cls(view)), keep - 1)
        return keep - added, added

    def reduce(self, *, view, tokens, sizes, kept, alive, count, **rest) -> prunekit.Reduced:
        gone, has_cls = alive & ~kept, self._has_cls(view)
        targets = every_nth(gone, count - int(has_cls))
        nearest = self._nearest(view, tokens, targets)
        weight = (gone & ~targets).to(tokens.dtype)
        moved, came = prunekit.ops.sum_into(tokens, weight, nearest)
        merged = tokens + moved / came.clamp(min=1)[..., None]
        mass = sizes + torch.zeros_like(sizes).scatter_add(1, nearest, sizes * weight.to(sizes.dtype))
        tokens, added = torch.where(targets[..., None], merged, tokens), targets
        if has_cls:
            first = gone & ~targets
            first = first & (first.cumsum(1) == 1) & (count > 0)[:, None]
            tokens = torch.where(first[..., None], view.vision.cls[:, None].to(tokens.dtype), tokens)
            added = targets | first
        order = torch.where(targets, 2, 1).masked_fill(added & ~targets, 0)
        return prunekit.Reduced(tokens, torch.where(targets, mass, sizes), added, nearest.masked_fill(~gone, -1), order)

    def _has_cls(self, view) -> bool:
        return self.cls and view.site == "input" and view.vision.cls is not None

    def _nearest(self, view, tokens, targets) -> torch.Tensor:
        """For each token the target of the largest cosine, long [B, N]."""
        if view.site == "input":
            metric = view.vision.keys().mean(2)
        else:
            metric = view.visual(view.keys.mean(1)) if view.site == "vision" else tokens
        return prunekit.ops.nearest(metric, targets, most=int(targets.sum(1).max()))


def every_nth(rest: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Every (n // count)-th of the n True entries of each row of ``rest`` [B, N], ``count`` [B] of them."""
    step = (rest.sum(1) // count.clamp(min=1)).clamp(min=1)[:, None]
    rank = rest.cumsum(1) - 1
    return rest & (rank % step == 0) & (rank // step < count[:, None])


prunekit.compose(
    "visionzip", scorer="cls", fusion="single", schedule="input", reducer="contextual", positions="renumber"
)
