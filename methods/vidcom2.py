"""VidCom2: frames that differ from the video keep more, and of each frame what differs from both stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


@prunekit.register("scorer", "vidcom2")
@dataclass
class VidCom2Scorer(prunekit.VideoScorer):
    """Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models (EMNLP 2025,
    https://arxiv.org/abs/2505.14454, section 3): minus the likeness of a token to its video and to its frame.

    Likeness is Σ_α exp(-d² / 2α) over five widths α, d the distance to the mean of the unit tokens; only the half of
    the channels that varies least counts.
    """

    least_frames = 1

    def score_video(self, video: prunekit.Video) -> torch.Tensor:
        to_video, to_frame = likeness(video.tokens)
        return -(to_video + to_frame)


@prunekit.register("selector", "vidcom2")
@dataclass
class VidCom2(prunekit.VideoSelector):
    """Each frame keeps its best scores. Its budget is base · (1 + p - mean p) with p the softmax over frames of minus
    their mean likeness to the video, at most the whole frame (VidCom2, section 3.1).

    Args:
        temperature: of the softmax.
    """

    temperature: float = 0.01

    least_frames = 1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise prunekit.PrunekitError(f"selector.temperature must be above 0, not {self.temperature}")

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        to_video, _ = likeness(video.tokens)
        share_F = (-to_video.double().mean(1) / self.temperature).softmax(0)
        # Shares of the budget by largest remainders, so that rounding neither adds nor takes a token.
        limits_F = torch.full_like(share_F, video.index.shape[1], dtype=torch.long)
        total = torch.tensor([keep], device=share_F.device)
        counts_F = prunekit.ops.apportion((1 + share_F - share_F.mean())[None], total, limits_F[None])[0]
        return prunekit.ops.top_k(video.scores, counts_F, torch.ones_like(video.scores, dtype=torch.bool))


def likeness(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How alike tokens [F, P, D] are to the centre of their video, and to that of their frame: [F, P] each."""
    flat = tokens.flatten(0, 1)
    quiet = flat.var(0, unbiased=False).topk(flat.shape[1] // 2, largest=False).indices
    units = torch.nn.functional.normalize(tokens[..., quiet], dim=-1)
    centres = units.mean((0, 1), keepdim=True), units.mean(1, keepdim=True)
    squares = ((units - centre).square().sum(-1) for centre in centres)
    to_video, to_frame = (sum(torch.exp(-square / (2 * width)) for width in WIDTHS) for square in squares)
    return torch.as_tensor(to_video), torch.as_tensor(to_frame)


prunekit.compose("vidcom2", scorer="vidcom2", fusion="single", schedule="input", selector="vidcom2", keep_ratio=0.25)
