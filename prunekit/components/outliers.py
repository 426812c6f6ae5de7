"""A selector that keeps the outliers it finds, whatever the budget says."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prunekit.components.base import Selector
from prunekit.registry import register
from prunekit.tensors.ranking import stride, top_k

if TYPE_CHECKING:
    from prunekit.views.layer import LayerView


@register("selector", "outliers")
@dataclass
class Outliers(Selector):
    """Scores above Q3 + 1.5·IQR of an image's (LLaVA-PruMerge, section 3); at least the highest.

    Args:
        adaptive: keep as many as there are, whatever the budget (the paper's choice). If not, as many of the highest as
            the budget says (the authors' fixed ratio).
        spread: keep every int(step / 3)-th patch of the raster as well, step = int(1 / share of outliers) (PruMerge+).
            Without ``adaptive`` half of the budget are outliers, the rest evenly spaced.
        fence: the multiple of the IQR.
    """

    adaptive: bool = True
    spread: bool = False
    fence: float = 1.5

    uses_vision = True

    def check(self, depth: int) -> None:
        if self.adaptive:
            text = "selector 'outliers' keeps what it finds, whatever keep_ratio says; selector.adaptive=false obeys it"
            warnings.warn(text, stacklevel=2)

    def select(self, view: LayerView, scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        # Never inside an encoder: it is not exact.
        alive = view.alive & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles have no score
        if not self.adaptive:
            chosen = top_k(scores, quota if not self.spread else (quota + 1) // 2, alive)
            return chosen | stride(alive & ~chosen, quota - chosen.sum(1)) if self.spread else chosen
        image, chosen = view.vision.image.to(alive.device), torch.zeros_like(alive)
        first = image.masked_fill(image < 0, torch.iinfo(image.dtype).max).amin(1, keepdim=True)
        for number in range(int((image - first).amax()) + 1):  # images of a sample
            chosen = chosen | self._of_image(scores, alive & (image - first == number))
        return chosen

    def _of_image(self, scores: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        values = scores.float().masked_fill(~alive, torch.nan)
        low, high = (torch.nanquantile(values, q, dim=1, keepdim=True) for q in (0.25, 0.75))
        chosen = alive & (values > high + self.fence * (high - low))
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, top_k(scores, alive.any(1).long(), alive))
        if not self.spread:
            return chosen
        step = alive.sum(1) // chosen.sum(1).clamp(min=1)
        every = (step // 3).clamp(min=1)[:, None]
        return chosen | (alive & ((alive.cumsum(1) - 1) % every == 0))
