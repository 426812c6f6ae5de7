"""FastVID: segments of like frames; in each, salient tokens, and anchors that gather what is like them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

NEIGHBOURS = 4
"""Whose distances say how dense a token lies, itself included."""


@prunekit.register("selector", "fastvid")
@dataclass
class FastVid(prunekit.VideoSelector):
    """FastVID: Dynamic Density Pruning for Fast Video Large Language Models (NeurIPS 2025,
    https://arxiv.org/abs/2503.11187, section 3).

    A segment ends where neighbouring frames are among the ``segments`` - 1 least alike, or less alike than
    ``threshold``. Frames share the budget evenly. Of its share a frame keeps the part 1 - ``context`` by score. The
    rest of a segment's budget goes to anchors: the density peaks among the other tokens of every ``step``-th frame,
    counted from the segment's last. What anchors have no room for goes to the best scores.

    Args:
        segments: c, at least so many; videos of fewer frames have one a frame.
        threshold: τ, of the cosine of the frames' mean tokens.
        context: d, the share of the budget for anchors.
        step: p, from one frame with anchors to the next.
    """

    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    step: int = 4

    def __post_init__(self) -> None:
        if self.segments < 1 or self.step < 1:
            raise prunekit.PrunekitError("selector.segments and selector.step must be at least 1")
        prunekit.check_interval("selector.context", self.context, "[0, 1]")

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        segment_F = segments_of(video.tokens.mean(1), self.segments, self.threshold)
        counts_F = share(torch.ones_like(segment_F), torch.full_like(segment_F, video.index.shape[1]), keep)
        context_F = (counts_F * self.context).long()
        every_FP = torch.ones_like(video.index, dtype=torch.bool)
        salient_FP = prunekit.ops.top_k(video.scores, counts_F - context_F, every_FP)
        anchors_F, room_F = torch.zeros_like(counts_F), (~salient_FP).sum(1)
        for number in range(int(segment_F[-1]) + 1):
            own = segment_F == number
            ends = own & ((own.flip(0).cumsum(0).flip(0) - 1) % self.step == 0)
            total = min(int(context_F[own].sum()), int(room_F[ends].sum()))
            anchors_F = anchors_F + share(ends.long(), room_F * ends, total)
        anchors_FP = prunekit.ops.top_k(
            prunekit.ops.density_peaks(video.tokens, ~salient_FP, NEIGHBOURS), anchors_F, ~salient_FP
        )
        video.notes.update(segments=segment_F, anchors=anchors_FP, salient=salient_FP)
        chosen = salient_FP | anchors_FP
        missing = keep - chosen.sum()[None]
        more = prunekit.ops.top_k(video.scores.flatten()[None], missing, ~chosen.flatten()[None])
        return chosen | more.view_as(chosen)


@prunekit.register("reducer", "fastvid")
@dataclass
class Gather(prunekit.VideoReducer):
    """Each token of a segment that is not salient joins the most similar anchor (cosine) of each frame with anchors.
    An anchor becomes β · itself + (1 - β) · the mean of what joined it, itself included (FastVID, section 3.3).

    Args:
        beta: β; at least 1 / (n + 1) where n tokens joined.
    """

    beta: float = 0.6

    def reduce_video(self, video: prunekit.Video, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if "anchors" not in video.notes:
            raise prunekit.PrunekitError("reducer 'fastvid' needs the anchors of selector 'fastvid'")
        tokens, nearest = video.tokens.clone().flatten(0, 1), torch.full_like(video.index.flatten(), -1)
        best = torch.full_like(nearest, -2, dtype=tokens.dtype)
        for frame in video.notes["anchors"].any(1).nonzero()[:, 0].tolist():
            own = video.notes["segments"] == video.notes["segments"][frame]
            joins = (~video.notes["salient"] & own[:, None]).flatten().nonzero()[:, 0]
            anchors = video.notes["anchors"][frame].nonzero()[:, 0] + frame * video.index.shape[1]
            old = video.tokens.flatten(0, 1)
            cosine = prunekit.ops.cosine(old[joins][None], old[anchors][None])[0]
            top = cosine.max(1)
            count = torch.zeros_like(anchors).scatter_add(0, top.indices, torch.ones_like(joins))[:, None]
            mean = torch.zeros_like(old[anchors]).index_add(0, top.indices, old[joins]) / count.clamp(min=1)
            beta = (1 / (count + 1)).clamp(min=self.beta)
            tokens[anchors] = beta * old[anchors] + (1 - beta) * mean
            nearer = top.values > best[joins]
            best[joins] = torch.where(nearer, top.values, best[joins])
            nearest[joins] = torch.where(nearer, anchors[top.indices], nearest[joins])
        return tokens.view_as(video.tokens), nearest.view_as(video.index)


def segments_of(frames: torch.Tensor, least: int, threshold: float) -> torch.Tensor:
    """The number of each frame's segment, long [F], by the cosine of neighbouring ``frames`` [F, D]."""
    alike = torch.cosine_similarity(frames[:-1], frames[1:], dim=-1)
    breaks = alike < threshold
    breaks[alike.argsort(stable=True)[: least - 1]] = True
    return torch.nn.functional.pad(breaks.long(), (1, 0)).cumsum(0)


def share(weights: torch.Tensor, limits: torch.Tensor, total: int) -> torch.Tensor:
    """``total`` tokens shared among frames by weight, none beyond its limit: long [F]."""
    return prunekit.ops.apportion(weights[None], torch.tensor([total], device=weights.device), limits[None])[0]


prunekit.compose(
    "fastvid",
    scorer="cls",
    fusion="single",
    schedule="input",
    selector="fastvid",
    reducer="fastvid",
    keep_ratio=0.25,
)
