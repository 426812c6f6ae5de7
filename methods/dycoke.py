"""DyCoke's temporal merging: of every four frames the first stays whole, of the others what changed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

import prunekit

BACK = torch.tensor([0, 1, 2, 1])
"""With which frame each of four is compared: how many frames back, 0 for none."""


@prunekit.register("selector", "dycoke")
@dataclass
class DyCoke(prunekit.VideoSelector):
    """DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models (CVPR 2025,
    https://arxiv.org/abs/2411.15024, section 3.2): temporal token merging.

    The second and the fourth frame of a window of four are compared with the one before, the third with the first,
    place by place. The least alike tokens (cosine) stay, equally many of each frame; the first frame stays whole. A
    budget of less than these whole frames cannot be met: they stay, and a line says so. Scores are ignored.

    Args:
        variant: "code" (default) leaves the third frame whole in the last window, "paper" treats all windows alike.
    """

    variant: str = "code"

    exact = False
    ignores_scores = True

    def __post_init__(self) -> None:
        prunekit.check_choice("variant", self.variant, ("code", "paper"))

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        back_F = self._back(video.frames).to(video.index.device)
        before = video.tokens[torch.arange(video.frames, device=back_F.device) - back_F]
        changed_FP = -torch.cosine_similarity(video.tokens, before, dim=-1)
        whole_F = back_F == 0
        limits_F = torch.full_like(back_F, video.index.shape[1])
        least = int(limits_F[whole_F].sum())
        if keep < least:
            warnings.warn(f"dycoke keeps {least} tokens of a video, its whole frames; {keep} are too few", stacklevel=2)
        rest = torch.tensor([max(keep - least, 0)], device=back_F.device)
        changed_F = (~whole_F).long()[None]
        counts_F = prunekit.ops.apportion(changed_F, rest, changed_F * limits_F)[0]
        every = torch.ones_like(changed_FP, dtype=torch.bool)
        return prunekit.ops.top_k(changed_FP, torch.where(whole_F, limits_F, counts_F), every)

    def _back(self, frames: int) -> torch.Tensor:
        """How many frames back each frame is compared, 0 where it stays whole: long [F]."""
        number = torch.arange(frames)
        back = BACK[number % 4]
        if self.variant == "code":
            back[(number % 4 == 2) & (number >= frames - 2)] = 0
        return back


prunekit.compose("dycoke", scorer="random", fusion="single", schedule="input", selector="dycoke", keep_ratio=0.475)
