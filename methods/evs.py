"""EVS: what looks like the same place of the frame before goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

FIRST = 3.0
"""The score of the first frame: above every 1 - cosine."""


@prunekit.register("scorer", "evs")
@dataclass
class Evs(prunekit.VideoScorer):
    """Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference
    (https://arxiv.org/abs/2510.14624, section 3).

    The score of a token is 1 - cosine to the token of the same place one frame before. The first frame comes before
    all others. Where the budget is smaller than one frame, it is the beginning of that frame.
    """

    def score_video(self, video: prunekit.Video) -> torch.Tensor:
        changed_FP = 1 - torch.cosine_similarity(video.tokens[1:], video.tokens[:-1], dim=-1)
        return torch.cat([torch.full_like(changed_FP[:1], FIRST), changed_FP])


prunekit.compose(
    "evs",
    scorer="evs",
    fusion="single",
    schedule="input",
    selector={"name": "grouped", "by": "medium", "budget": "size"},
    keep_ratio=0.3,
)
