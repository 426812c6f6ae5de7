"""VisPruner: half of the budget to what the CLS token looks at, half to what is unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "vispruner")
@dataclass
class VisPruner(prunekit.Selector):
    """Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs (ICCV 2025,
    https://arxiv.org/abs/2412.01818, section 3).

    The best int(important · K) by score stay. Of the rest, in the order of their scores, every second one is compared
    with those in between, and the ``step`` most similar (cosine of the encoder's features) go; what is left of them, by
    falling similarity, precedes the others; this is repeated until the rest of the budget is left.

    Args:
        important: share of the budget that the scores decide.
        step: tokens that go at a time.
    """

    important: float = 0.5
    step: int = 8

    exact = uses_vision = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.important", self.important, "[0, 1]")
        if self.step < 1:
            raise prunekit.PrunekitError(f"selector.step must be at least 1, not {self.step}")

    def select(self, view, scores, quota) -> torch.Tensor:
        features = view.vision.features if view.site != "vision" else view.visual(view.hidden_states)
        cosine = prunekit.ops.cosine(features.to(scores.device))
        patches = view.alive & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles have no features
        best = prunekit.ops.top_k(scores, (quota.double() * self.important).long(), patches)
        rest = patches & ~best
        order = scores.masked_fill(~rest, -torch.inf).argsort(dim=1, descending=True, stable=True)
        different = self._thin_out(cosine, order, rest.sum(1), quota - best.sum(1))
        chosen = best | different
        return chosen | prunekit.ops.top_k(scores, quota - chosen.sum(1), view.alive & ~chosen)

    def _thin_out(
        self, cosine: torch.Tensor, order: torch.Tensor, left: torch.Tensor, want: torch.Tensor
    ) -> torch.Tensor:
        """Of the first ``left`` [B] tokens of ``order`` [B, N] the ``want`` [B] most unlike each other: bool [B, N]."""
        places = torch.arange(order.shape[1], device=order.device)
        left = torch.where(want > 0, left, 0)
        while True:
            goes = torch.minimum((left - want).clamp(max=self.step), (left + 1) // 2).clamp(min=0)
            width, most = torch.stack([left.max(), goes.max()]).tolist()
            if not most:
                break
            order = torch.cat([self._round(cosine, order[:, :width], left, goes), order[:, width:]], 1)
            left = left - goes
        marks = torch.zeros_like(order, dtype=torch.bool)
        return marks.scatter(1, order, places < left[:, None])

    def _round(self, cosine: torch.Tensor, order: torch.Tensor, left: torch.Tensor, goes: torch.Tensor) -> torch.Tensor:
        """One matching of even against odd places; the ``goes`` [B] best matched go to the end."""
        size = order.shape[1]
        places = torch.arange(size, device=order.device).expand_as(order)
        even, odd = order[:, ::2], order[:, 1::2]
        pairs = prunekit.ops.gather_tokens(cosine, even).gather(2, odd[:, None].expand(-1, even.shape[1], -1))
        match = pairs.masked_fill(places[:, None, 1::2] >= left[:, None, None], -torch.inf).amax(-1)
        match = match.masked_fill(places[:, ::2] >= left[:, None], -torch.inf)
        rank = prunekit.ops.ranks(match)
        key = places + size  # odd places follow, in their order
        key[:, ::2] = torch.where(rank < goes[:, None], 3 * size, rank)
        key = torch.where(places < left[:, None], key, key + 3 * size)
        changed = order.gather(1, key.argsort(dim=1, stable=True))
        return torch.where((goes > 0)[:, None], changed, order)


prunekit.compose(
    "vispruner", scorer="cls", fusion="single", schedule="input", selector="vispruner", positions="renumber"
)
