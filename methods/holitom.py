"""HoliTom: what stands still over a window of frames becomes one token; the rest by attention."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "holitom")
@dataclass
class HoliTom(prunekit.VideoSelector):
    """HoliTom: Holistic Token Merging for Fast Video Large Language Models (NeurIPS 2025,
    https://arxiv.org/abs/2505.21334, section 3). ``holitom`` is the part before the decoder ("w/o M"), ``holitom_full``
    cuts once more inside it, before layer 18 of 28, to half of what stands, by the last token's attention.

    A place is static in a window of frames if all its neighbours in time have a cosine above ``threshold``. Windows are
    those that save most tokens, by dynamic programming; a static place becomes the mean of its window, at the first
    frame. The budget is shared in proportion to what is left: of the static places of a window density peaks stay, of
    the others of each frame the best scores, and density peaks for the part ``context``.

    If less is left than the budget, all of it stays, and a line says so.

    Args:
        threshold: τ; the authors' code has 0.8, and 0.65 for a budget of a tenth.
        context: D, the share of density peaks among the tokens that are not static.
        neighbours: whose distances say how dense a token lies, itself included; no more than peaks are chosen.
    """

    threshold: float = 0.8
    context: float = 0.0
    neighbours: int = 7

    exact = False
    tops_in_decoder = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.context", self.context, "[0, 1]")
        if self.neighbours < 1:
            raise prunekit.PrunekitError(f"selector.neighbours must be at least 1, not {self.neighbours}")

    def select_video(self, video: prunekit.Video, keep: int) -> torch.Tensor:
        still = torch.cosine_similarity(video.tokens[:-1], video.tokens[1:], dim=-1) > self.threshold
        tokens, start = video.tokens.clone(), torch.arange(video.frames, device=still.device)
        static = torch.zeros_like(video.index, dtype=torch.bool)
        dynamic = torch.ones_like(static)
        for first, last in windows(still):
            place = still[first:last].all(0) & (last > first)
            tokens[first, place] = video.tokens[first : last + 1, place].mean(0)
            static[first], dynamic[first : last + 1] = place, ~place
            start[first : last + 1] = first
        sizes = torch.stack([dynamic.sum(1), static.sum(1)])
        left = int(sizes.sum())
        if keep > left:
            warnings.warn(f"holitom keeps {left} tokens of a video, of which the rest stands still", stacklevel=2)
        total = torch.tensor([min(keep, left)], device=still.device)
        moving, standing = prunekit.ops.apportion(sizes.flatten()[None], total, sizes.flatten()[None]).view(2, -1)
        best = prunekit.ops.top_k(video.scores, (moving * (1 - self.context)).round().long(), dynamic)
        rest = dynamic & ~best
        centres = self._peaks(tokens, rest, moving - best.sum(1)), self._peaks(tokens, static, standing)
        clusters = ((rest, centres[0]), (static, centres[1]))
        video.notes.update(tokens=tokens, start=start, dynamic=dynamic, clusters=clusters)
        return best | centres[0] | centres[1]

    def _peaks(self, tokens: torch.Tensor, among: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        peaks = prunekit.ops.density_peaks(tokens, among, count.clamp(min=1, max=self.neighbours))
        return prunekit.ops.top_k(peaks, count, among)


@prunekit.register("reducer", "holitom")
@dataclass
class Clusters(prunekit.VideoReducer):
    """Static places are their mean over the window; in each cluster the peak becomes β · itself + (1 - β) · the mean of
    the others, which are nearer to it than to other peaks of their frame (HoliTom, section 3).

    Args:
        beta: β.
    """

    beta: float = 0.6

    tops_in_decoder = True

    def reduce_later(self, tokens: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor) -> prunekit.Reduced:
        """The second cut: each token that goes is folded into the most similar one that stays (section 3.3)."""
        target = prunekit.ops.nearest(tokens, kept).masked_fill(kept | ~alive, -1)
        return prunekit.Reduced(folded(tokens, target), sources=target)

    def reduce_video(self, video: prunekit.Video, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if "clusters" not in video.notes:
            raise prunekit.PrunekitError("reducer 'holitom' needs the clusters of selector 'holitom'")
        old, (frames, patches) = video.notes["tokens"], video.index.shape
        new, number = old.clone(), torch.arange(frames * patches, device=old.device).view(frames, patches)
        target = torch.where(kept, number, -1)
        far = torch.cdist(old, old, compute_mode="donot_use_mm_for_euclid_dist")
        for members, centres in video.notes["clusters"]:
            nearest = far.masked_fill(~centres[:, None], torch.inf).min(-1)
            joins = members & ~centres & nearest.values.isfinite()
            sums, counts = prunekit.ops.sum_into(old, joins.to(old.dtype), nearest.indices)
            mixed = self.beta * old + (1 - self.beta) * sums / counts.clamp(min=1)[..., None]
            new = torch.where((centres & (counts > 0))[..., None], mixed, new)
            target = torch.where(joins, number.gather(1, nearest.indices), target)
        # A static token of a later frame lives on where its place at the window's first frame does.
        return new, torch.where(video.notes["dynamic"], target, target[video.notes["start"]])


def windows(still: torch.Tensor) -> list[tuple[int, int]]:
    """First and last frame of the windows that save most tokens, by which places are ``still`` [F - 1, P] from each
    frame to the next. A window of n frames saves n - 1 tokens for each place that is still throughout."""
    frames = len(still) + 1
    runs = [still[first:].long().cumprod(0).sum(1).tolist() for first in range(frames - 1)]
    saved, begins = [0], [0]
    for last in range(1, frames):
        saved.append(saved[last - 1])
        begins.append(last)
        for first in range(last - 1, -1, -1):
            total = (saved[first - 1] if first else 0) + runs[first][last - first - 1] * (last - first)
            if total > saved[last]:
                saved[last], begins[last] = total, first
    chosen, last = [], frames - 1
    while last >= 0:
        chosen.append((begins[last], last))
        last = begins[last] - 1
    return chosen[::-1]


def folded(tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Tokens [B, N, D] after those with a ``target`` (long [B, N], -1 for none) were folded into it one after the other
    in their order, each time by the mean of the two: the last one counts half."""
    size, goes = target.shape[1], target >= 0
    order = torch.where(goes, target, size).argsort(dim=1, stable=True)
    groups = torch.where(goes, target, size).gather(1, order)
    after = torch.searchsorted(groups, groups, right=True) - torch.arange(size, device=groups.device)
    weight = torch.zeros_like(tokens[..., 0]).scatter(1, order, 0.5 ** after.to(tokens.dtype)) * goes
    sums, _ = prunekit.ops.sum_into(tokens, weight, target.clamp(min=0))
    came = torch.zeros_like(target).scatter_add(1, target.clamp(min=0), goes.long())
    return tokens * 0.5 ** came[..., None].to(tokens.dtype) + sums


prunekit.compose(
    "holitom",
    scorer="cls",
    fusion="single",
    schedule="input",
    selector="holitom",
    reducer="holitom",
    keep_ratio=0.15,
)
prunekit.compose(
    "holitom_full",
    scorer={"name": "by_site", "input": "cls", "decoder": "fastv"},
    fusion="single",
    schedule={"name": "sites", "vision": None, "at_input": True, "decoder": [18 / 28], "last": 0.5},
    selector="holitom",
    reducer="holitom",
    keep_ratio=0.075,
)
