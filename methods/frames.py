"""Controls of video: fewer whole frames, and the same few places of fewer frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "frames")
@dataclass
class Frames(prunekit.VideoSelector):
    """So many whole frames as fit into the budget, evenly spaced; what is left of it goes to evenly spaced tokens of
    one frame more. Scores are ignored."""

    ignores_scores = True

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        patches = video.index.shape[1]
        chosen = spread_frames(video, -(-keep // patches))
        counts = (keep - (chosen.cumsum(0) - 1) * patches).clamp(max=patches)
        return spread_tokens(video, torch.where(chosen, counts, 0))


@prunekit.register("selector", "uniform_video")
@dataclass
class UniformVideo(prunekit.VideoSelector):
    """Evenly spaced tokens of evenly spaced frames, the same share of both: √(K / N). Scores are ignored."""

    ignores_scores = True

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        frames, patches = video.index.shape
        # At least as many frames as the budget fills, and no more than one token each.
        fewest = -(-keep // patches)
        chosen = min(max(round(frames * math.sqrt(keep / (frames * patches))), fewest), keep)
        weights = spread_frames(video, chosen)[None].long()
        total = torch.tensor([keep], device=weights.device)
        return spread_tokens(video, prunekit.ops.apportion(weights, total, weights * patches)[0])


def spread_frames(video: prunekit.Video, count: int) -> torch.Tensor:
    """``count`` evenly spaced frames of a video, bool [F]."""
    every = torch.ones_like(video.index[None, :, 0], dtype=torch.bool)
    return prunekit.ops.stride(every, torch.tensor([count], device=every.device))[0]


def spread_tokens(video: prunekit.Video, counts: torch.Tensor) -> torch.Tensor:
    """Evenly spaced tokens of each frame, ``counts`` [F] of them: bool [F, P]."""
    return prunekit.ops.stride(torch.ones_like(video.index, dtype=torch.bool), counts)


PARTS = {"scorer": "random", "fusion": "single", "schedule": "input"}
prunekit.compose("frames", **PARTS, selector="frames")
prunekit.compose("uniform_video", **PARTS, selector="uniform_video")
