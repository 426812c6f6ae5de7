"""SparseVLM+: SparseVLM's raters with attention corrected for its pull by distance, and only the heads that look."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

COUNTS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}
"""Tokens kept of 576 after each cut, as in ``sparsevlm``."""

_SparseVLM = type(prunekit.create("scorer", "sparsevlm"))
_Schedule = type(prunekit.create("schedule", "sparsevlm"))


@prunekit.register("scorer", "sparsevlm_plus")
@dataclass
class SparseVLMPlus(_SparseVLM):
    """The second version in the code of SparseVLM (https://arxiv.org/abs/2410.04417).

    The raters' rows are divided by what the rotary embedding alone would make of each distance: the product of two
    vectors of ones, turned by the places of query and key, over √d. Of the corrected rows the heads with the largest
    sum over raters and visual tokens count, and the score is the mean over these heads and the raters.

    Args:
        share: of the heads; half of them by default.
    """

    share: float = 0.5

    uses_unrotated = True

    def __post_init__(self) -> None:
        super().__post_init__()
        prunekit.check_interval("scorer.share", self.share, "(0, 1]")
        if self.heads != "mean":
            raise prunekit.PrunekitError("scorer.heads: of the heads that 'sparsevlm_plus' chooses the mean counts")

    def score(self, view) -> torch.Tensor:
        raters = self.chosen_queries(view)
        index_BQ, valid_BQ = view.query_index(raters)
        rows_BHQS, width = view.attention(raters), view.queries.shape[-1]
        gravity_BQS = (width - view.rotary_angles[0].shape[-1]) / width**0.5
        for turn_BSr in view.rotary_angles:
            gravity_BQS = gravity_BQS + prunekit.ops.gather_tokens(turn_BSr, index_BQ) @ turn_BSr.mT / width**0.5
        rows_BHQS = rows_BHQS / gravity_BQS[:, None]
        rows_BNHQ = view.visual(rows_BHQS.permute(0, 3, 1, 2)) * view.alive[..., None, None]
        heads = rows_BNHQ.sum((1, 3)).argsort(dim=1, descending=True, stable=True)
        chosen_BK = heads[:, : max(1, int(self.share * heads.shape[1]))]
        per_head_BNH = rows_BNHQ.sum(3) / valid_BQ.sum(1)[:, None, None].clamp(min=1)
        return per_head_BNH.gather(2, chosen_BK[:, None].expand(-1, per_head_BNH.shape[1], -1)).mean(2)

    def score_rows(self, rows: torch.Tensor, view) -> torch.Tensor:
        raise prunekit.PrunekitError("scorer 'sparsevlm_plus' corrects a layer's rows, none that a fusion has joined")


@prunekit.register("schedule", "sparsevlm_plus")
@dataclass
class SparseVLMPlusSchedule(_Schedule):
    """SparseVLM's layers with the counts of the second version: its end is 118, 60, 28 or 20 of 576."""

    tables = COUNTS


prunekit.compose(
    "sparsevlm_plus", scorer="sparsevlm_plus", fusion="single", schedule="sparsevlm_plus", positions="keep"
)
