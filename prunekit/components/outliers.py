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
        alive_BN = view.alive & (scores > torch.finfo(scores.dtype).min)  # newlines between tiles have no score
        if not self.adaptive:
            chosen_BN = top_k(scores, quota if not self.spread else (quota + 1) // 2, alive_BN)
            return chosen_BN | stride(alive_BN & ~chosen_BN, quota - chosen_BN.sum(1)) if self.spread else chosen_BN
        image_BN, chosen_BN = view.vision.image.to(alive_BN.device), torch.zeros_like(alive_BN)
        first_B1 = image_BN.masked_fill(image_BN < 0, torch.iinfo(image_BN.dtype).max).amin(1, keepdim=True)
        for number in range(int((image_BN - first_B1).amax()) + 1):  # images of a sample
            chosen_BN = chosen_BN | self._of_image(scores, alive_BN & (image_BN - first_B1 == number))
        return chosen_BN

    def _of_image(self, scores_BN: torch.Tensor, alive_BN: torch.Tensor) -> torch.Tensor:
        values_BN = scores_BN.float().masked_fill(~alive_BN, torch.nan)
        low_B1, high_B1 = (torch.nanquantile(values_BN, q, dim=1, keepdim=True) for q in (0.25, 0.75))
        chosen_BN = alive_BN & (values_BN > high_B1 + self.fence * (high_B1 - low_B1))
        highest_BN = top_k(scores_BN, alive_BN.any(1).long(), alive_BN)
        chosen_BN = torch.where(chosen_BN.any(1, keepdim=True), chosen_BN, highest_BN)
        if not self.spread:
            return chosen_BN
        step_B = alive_BN.sum(1) // chosen_BN.sum(1).clamp(min=1)
        stride_B1 = (step_B // 3).clamp(min=1)[:, None]
        return chosen_BN | (alive_BN & ((alive_BN.cumsum(1) - 1) % stride_B1 == 0))
