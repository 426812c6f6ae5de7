"""SparseVLM: raters among the question's tokens; with the parts ``rank`` (how many go) and ``recycle`` (what then)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

import prunekit

COUNTS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
"""Tokens kept of 576 after each cut in the authors' code, by the number that the paper calls the configuration."""


@prunekit.register("scorer", "sparsevlm")
@dataclass
class SparseVLM(prunekit.ReceivedAttention):
    """SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference (ICML 2025,
    https://arxiv.org/abs/2410.04417, section 3).

    Raters are the instruction's tokens that the image looks like more than average, chosen once, on what enters
    layer 0: r = mean over visual v of softmax over text of H_v H_textᵀ, unscaled; raters = {i : r_i > mean r}. The
    score is the mean over the raters' rows of the head-mean attention. Where all r are equal, all are raters.
    """

    heads: str = "mean"

    def chosen_queries(self, view) -> torch.Tensor:
        raters = view.once("sparsevlm", lambda: self.raters(view.inputs_embeds, view.layout))
        return view.in_layer(raters.to(view.layout.text.device)) & view.real

    def raters(self, embeds: torch.Tensor, layout) -> torch.Tensor:
        """Bool [B, S] from what entered layer 0, [B, S, D]."""
        index, valid = prunekit.ops.ragged_index(layout.text.to(embeds.device), max(layout.text_counts))
        exists = layout.exists.to(embeds.device)
        visual_BND, text_BTD = (prunekit.ops.gather_tokens(embeds.float(), i) for i in (layout.visual_index, index))
        logits_BNT = visual_BND @ text_BTD.transpose(1, 2)
        share_BNT = logits_BNT.masked_fill(~valid[:, None], torch.finfo(torch.float32).min).softmax(-1)
        r_BT = (share_BNT * exists[..., None]).sum(1) / exists.sum(1, keepdim=True).clamp(min=1)
        mean_B1 = (r_BT * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        chosen = valid & (r_BT > mean_B1)
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, valid)
        return prunekit.ops.scatter_where(chosen, index, chosen, layout.text.shape[1])


@prunekit.register("schedule", "sparsevlm")
@dataclass
class SparseVLMSchedule(prunekit.Schedule):
    """Cuts after layers 2, 6 and 15; in a decoder of fewer than 32 layers at the same fractions of its depth.

    Args:
        label: 192, 128, 96 or 64: the authors' counts of that name, which leave 110, 36, 26 or 17 of 576 at the end.
            By default those whose end is nearest to the budget, stretched to it.
    """

    label: int | None = None

    tables = COUNTS

    def __post_init__(self) -> None:
        if self.label is not None and self.label not in self.tables:
            raise prunekit.PrunekitError(
                f"schedule.label must be one of {', '.join(map(str, self.tables))}, not {self.label}"
            )

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        after = [layer if depth >= 32 else round(layer * depth / 32) for layer in (2, 6, 15)]
        layers = sorted({layer + 1 for layer in after if layer + 1 < depth})
        if not layers:
            raise prunekit.PrunekitError(f"schedule 'sparsevlm': a decoder of {depth} layer has no place for a cut")
        counts = (
            self.tables[self.label]
            if self.label
            else min(self.tables.values(), key=lambda c: _distance(c[-1], keep_ratio))
        )
        ratios = [after / before for before, after in itertools.pairwise((576, *counts[-len(layers) :]))]
        return prunekit.create("schedule", "progressive", layers=layers, ratios=ratios).cuts(depth, keep_ratio)

    def own_ratio(self) -> float | None:
        return self.tables[self.label][-1] / 576 if self.label else None


def _distance(count: int, keep_ratio: float) -> float:
    return abs(math.log(count / 576) - math.log(keep_ratio))


parts = {"scorer": "sparsevlm", "fusion": "single", "schedule": "sparsevlm", "selector": "rank"}
prunekit.compose("sparsevlm", **parts, reducer="recycle", positions="renumber")  # version 1.5, of the paper
prunekit.compose("sparsevlm_keep", **parts, positions="keep")  # the authors' later version, which recycles nothing
