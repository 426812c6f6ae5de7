"""PruneVid: what stands still in a scene and what is alike in a frame become one; then the question chooses."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "question_peak")
@dataclass
class QuestionPeak(prunekit.RowScorer):
    """The largest attention that any token of the instruction gives, heads averaged (PruneVid, section 3.3)."""

    works_without_attention = True  # the first cut, before layer 0, does not look at scores

    @property
    def query_set(self) -> str:
        return "text"

    def score(self, view) -> torch.Tensor:
        if view.inputs is None:
            return torch.zeros(view.alive.shape, device=view.hidden_states.device)
        return super().score(view)

    def score_rows(self, rows: torch.Tensor, view) -> torch.Tensor:
        return view.visual((rows.mean(1) * view.visible(self.query_set)).amax(1))


@prunekit.register("selector", "prunevid")
@dataclass
class PruneVid(prunekit.VideoSelector):
    """PruneVid: Visual Token Pruning for Efficient Video Large Language Models (ACL Findings 2025,
    https://arxiv.org/abs/2412.16117, section 3), written from the paper alone.

    Before the decoder frames are divided into scenes; in a scene a place is static if its tokens have a mean pairwise
    cosine of at least ``threshold``, and becomes their mean, at the first frame. Static places of a scene and the other
    tokens of each frame are clustered apart, in numbers proportional to theirs that add up to the budget; a cluster
    becomes its mean, at its centre. Inside the decoder the highest scores stay. If fewer than the budget are left, all
    of them stay, and a line says so.

    Args:
        scenes: scenes in a video, as a share of its frames, rounded up.
        threshold: τ.
        neighbours: whose distances say how dense a frame or token lies, itself included (the paper does not say).
    """

    scenes: float = 0.25
    threshold: float = 0.8
    neighbours: int = 7

    exact = False
    tops_in_decoder = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.scenes", self.scenes, "(0, 1]")
        if self.neighbours < 1:
            raise prunekit.PrunekitError(f"selector.neighbours must be at least 1, not {self.neighbours}")

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        tokens, dynamic = video.tokens.clone(), torch.ones_like(video.index, dtype=torch.bool)
        static, start = torch.zeros_like(dynamic), torch.zeros_like(video.index[:, 0])
        for scene in self.scenes_of(video.tokens.mean(1)):
            still = mean_cosine(video.tokens[scene]) >= self.threshold
            still = still & (len(video.tokens[scene]) > 1)
            tokens[scene.start, still] = video.tokens[scene, still].mean(0)
            static[scene.start], dynamic[scene], start[scene] = still, ~still, scene.start
        groups = torch.cat([dynamic, static])
        sizes = groups.sum(1)[None]
        left = int(sizes.sum())
        if keep > left:
            warnings.warn(f"prunevid keeps {left} tokens of a video, of which the rest stands still", stacklevel=2)
        counts = prunekit.ops.apportion(sizes, torch.tensor([min(keep, left)], device=sizes.device), sizes)[0]
        peaks = prunekit.ops.density_peaks(tokens.repeat(2, 1, 1), groups, sizes[0].clamp(1, self.neighbours))
        centres = prunekit.ops.top_k(peaks, counts, groups)
        video.notes.update(tokens=tokens, dynamic=dynamic, start=start, clusters=(groups, centres))
        return centres[: video.frames] | centres[video.frames :]

    def scenes_of(self, frames: torch.Tensor) -> list[slice]:
        """Runs of neighbouring ``frames`` [F, D] that belong to the same of F · ``scenes`` density peaks."""
        count, every = math.ceil(self.scenes * len(frames)), torch.ones_like(frames[None, :, 0], dtype=torch.bool)
        peaks = prunekit.ops.density_peaks(frames[None], every, min(self.neighbours, len(frames)))
        centres = prunekit.ops.top_k(peaks, torch.tensor([count], device=frames.device), every)[0]
        far = torch.cdist(frames, frames, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(~centres, torch.inf)
        label = torch.where(centres, torch.arange(len(frames), device=frames.device), far.argmin(1)).tolist()
        starts = [0, *(t for t in range(1, len(label)) if label[t] != label[t - 1]), len(label)]
        return [slice(a, b) for a, b in itertools.pairwise(starts)]


def mean_cosine(tokens: torch.Tensor) -> torch.Tensor:
    """Mean cosine of all pairs of frames at each place, [P], of tokens [F, P, D]; 1 for a single frame."""
    frames = len(tokens)
    total = torch.nn.functional.normalize(tokens, dim=-1).sum(0).square().sum(-1)
    return (total - frames) / (frames * (frames - 1)) if frames > 1 else torch.ones_like(total)


@prunekit.register("reducer", "prunevid")
@dataclass
class ClusterMeans(prunekit.VideoReducer):
    """Static places are their mean over the scene, clusters the mean of their tokens (PruneVid, section 3.2)."""

    tops_in_decoder = True

    def reduce_video(self, video: prunekit.Video, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if "clusters" not in video.notes:
            raise prunekit.PrunekitError("reducer 'prunevid' needs the clusters of selector 'prunevid'")
        old, (groups, centres) = video.notes["tokens"], video.notes["clusters"]
        far = torch.cdist(old, old, compute_mode="donot_use_mm_for_euclid_dist").repeat(2, 1, 1)
        nearest = far.masked_fill(~centres[:, None], torch.inf).min(-1)
        joins = groups & ~centres & nearest.values.isfinite()
        sums, came = prunekit.ops.sum_into(old.repeat(2, 1, 1), joins.to(old.dtype), nearest.indices)
        means = (old.repeat(2, 1, 1) + sums) / (1 + came)[..., None]
        frames, number = video.frames, torch.arange(old[..., 0].numel(), device=old.device).view(old.shape[:2])
        new, target = old.clone(), torch.where(kept, number, -1)
        for half in (slice(0, frames), slice(frames, None)):
            new = torch.where(centres[half, :, None], means[half], new)
            target = torch.where(joins[half], number.gather(1, nearest.indices[half]), target)
        return new, torch.where(video.notes["dynamic"], target, target[video.notes["start"]])


prunekit.compose(
    "prunevid",
    scorer="question_peak",
    fusion="single",
    schedule={"name": "sites", "vision": None, "at_input": True, "decoder": [10 / 32], "last": 0.4},
    selector="prunevid",
    reducer="prunevid",
    keep_ratio=0.2,
)
