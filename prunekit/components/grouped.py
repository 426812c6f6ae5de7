"""A selector with a budget for each group of tokens: frames, segments of a video, images, windows of a picture."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunekit.components.base import Selector
from prunekit.errors import PrunekitError, check_choice
from prunekit.registry import register, registry
from prunekit.tensors.groups import apportion, group_means, group_numbers, group_sums

if TYPE_CHECKING:
    from prunekit.views.layer import LayerView, View

KINDS = ("frame", "segment", "medium", "tile", "window")
BUDGETS = ("equal", "size", "mass")
DIVISIONS = ("likeness", "optimal")


@register("selector", "grouped")
@dataclass
class Grouped(Selector):
    """Another selector in each group, on a share of the budget; the shares add up to the budget exactly.

    Separators (newlines, a frame's CLS token) belong to the group of the token before them.

    Args:
        by: "frame" and "medium" (an image or a video); "segment", neighbouring frames that are alike (see
            ``video_segments``); "tile", the tiles into which the model cuts an image, its thumbnail one of them;
            "window", squares of ``window`` tokens of each frame.
        of: the selector in a group, by name, with its own defaults; it must keep exactly what it is asked for.
        budget: "equal" for every group, by its "size", or by the "mass" of its scores (those above 0).
        window: tokens on a side of a window.
        segments: at most so many segments in a video; by default as many as ``threshold`` says.
        threshold: frames whose mean tokens have a cosine below it begin a new segment; 0.9 without ``segments``.
        division: "likeness" cuts where neighbours are least alike; "optimal" divides each video into ``segments`` runs
            whose frames lie nearest to their means, by dynamic programming.
    """

    by: str = "frame"
    of: str = "topk"
    budget: str = "equal"
    window: int = 6
    segments: int | None = None
    threshold: float | None = None
    division: str = "likeness"

    exact = uses_places = True

    def __post_init__(self) -> None:
        check_choice("selector.by", self.by, KINDS)
        check_choice("selector.budget", self.budget, BUDGETS)
        check_choice("selector.division", self.division, DIVISIONS)
        if self.division == "optimal" and (self.segments is None or self.threshold is not None):
            raise PrunekitError("selector.division=optimal needs selector.segments, and no threshold")
        for name, value in (("window", self.window), ("segments", self.segments)):
            if value is not None and value < 1:
                raise PrunekitError(f"selector.{name} must be at least 1, not {value}")
        self._selector: Any = registry.create("selector", self.of)
        if not self._selector.exact or self.of == "grouped":
            raise PrunekitError(f"selector.of: '{self.of}' does not keep a given number of each group's tokens")

    @property
    def uses_vision(self) -> bool:  # type: ignore[override]
        return self.by == "tile" or self._selector.uses_vision

    def select(self, view: View, scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        numbers_BN, groups = self.groups(view)  # type: ignore[arg-type]  # an encoder's view has places too
        limits_BG = group_sums((numbers_BN >= 0).long(), numbers_BN, groups)
        counts_BG = apportion(self.group_weights(scores, numbers_BN, limits_BG), quota, limits_BG)
        return select_in_groups(self._selector, view, scores, numbers_BN, counts_BG)

    def groups(self, view: LayerView) -> tuple[torch.Tensor, int]:
        """The group of each standing token, [B, N], and how many groups there are."""
        places, alive = view.places, view.alive
        frame = in_line(places.frame, places.exists)
        if self.by == "medium":
            return group_numbers(places.medium, among=alive)
        if self.by == "frame":
            return group_numbers(places.medium, frame, among=alive)
        if self.by == "segment":
            if self.division == "optimal":
                segments = optimal_segments(view, self.segments or 1)
            else:
                segments = video_segments(view, self.segments, self.threshold)
            return group_numbers(places.medium, segments, among=alive)
        if self.by == "tile":
            if not view.vision.tower.tiles:
                raise PrunekitError(f"selector.by=tile: '{view.vision.tower.name}' does not cut images into tiles")
            tile = in_line(view.vision.image.to(alive.device), view.vision.exists.to(alive.device))
            return group_numbers(places.medium, tile, among=alive)
        row, column = (in_line(x, places.exists) // self.window for x in (places.row, places.column))
        return group_numbers(places.medium, frame, row, column, among=alive)

    def group_weights(self, scores: torch.Tensor, numbers: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """What each group's share goes by, [B, G]."""
        if self.budget == "mass":
            finite = scores.masked_fill(~scores.isfinite(), 0).clamp(min=0)
            return group_sums(finite, numbers, sizes.shape[1])
        return (sizes if self.budget == "size" else (sizes > 0)).double()


def select_in_groups(
    selector: Selector, view: View, scores: torch.Tensor, numbers: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """What a selector keeps of each group [B, N] when it sees that group alone, ``counts`` [B, G] of each: [B, N]."""
    kept = torch.zeros_like(view.alive)
    for group in range(counts.shape[1]):
        own = numbers == group
        part = dataclasses.replace(view, alive=own)  # type: ignore[type-var]
        kept = kept | selector.select(part, scores.masked_fill(~own, -torch.inf), counts[:, group])
    return kept


def in_line(values: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Values [B, N] where ``exists``; a separator has that of the token before it, a leading one that of the next."""
    places = torch.arange(values.shape[1], device=values.device).expand_as(values)
    before = torch.where(exists, places, -1).cummax(dim=1).values
    after = torch.where(exists, places, values.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    source = torch.where(before < 0, after.clamp(max=values.shape[1] - 1), before)
    return values.gather(1, source).clamp(min=0)


def frame_numbers(view: LayerView) -> tuple[torch.Tensor, int]:
    """The number of each standing token's frame among all frames of its sample (an image is one), [B, N], -1 for
    separators; and how many frames a sample has at most."""
    places = view.places
    return group_numbers(places.medium, places.frame, among=places.exists & view.alive)


def frame_likeness(view: LayerView) -> tuple[torch.Tensor, torch.Tensor]:
    """How alike each frame and the next one of the same video are, and which there are.

    Likeness is the cosine of the frames' mean tokens as they enter the layer.

    Returns:
        float [B, F - 1], and bool [B, F - 1]: True where both are frames of one video.
    """
    numbers, frames = frame_numbers(view)
    means_BFD = group_means(view.visual(view.hidden_states), numbers, frames)
    medium_BF = torch.full((len(numbers), frames + 1), -1, device=numbers.device)
    medium_BF = medium_BF.scatter(1, torch.where(numbers < 0, frames, numbers), view.places.medium)[:, :frames]
    likeness = torch.cosine_similarity(means_BFD[:, :-1], means_BFD[:, 1:], dim=-1)
    follows = (medium_BF[:, 1:] >= 0) & (medium_BF[:, 1:] == medium_BF[:, :-1])
    return likeness, follows


def video_segments(view: LayerView, segments: int | None = None, threshold: float | None = None) -> torch.Tensor:
    """The segment of each token among those of its sample, long [B, N]: runs of neighbouring frames that are alike.

    A new segment begins where two frames are less alike than ``threshold`` (0.9 if nothing else is said), and at the
    ``segments`` - 1 least alike pairs of a sample's frames (FastVID, NeurIPS 2025, section 3.2); a new medium always
    begins one. Separators are in the segment of the token before them.
    """
    likeness, follows = frame_likeness(view)
    if threshold is None and segments is None:
        threshold = 0.9
    breaks = torch.zeros_like(follows)
    if threshold is not None:
        breaks = breaks | (likeness < threshold)
    if segments is not None:
        order = likeness.masked_fill(~follows, torch.inf).argsort(dim=1, stable=True)
        least = torch.zeros_like(follows).scatter(1, order[:, : segments - 1], True)
        breaks = breaks | least
    starts = torch.nn.functional.pad((breaks | ~follows).long(), (1, 0))
    numbers, _ = frame_numbers(view)
    return starts.cumsum(1).gather(1, in_line(numbers, numbers >= 0))


def optimal_segments(view: LayerView, segments: int) -> torch.Tensor:
    """The segment of each token among those of its sample, long [B, N]: each video is divided into ``segments`` runs of
    frames (as many as it has frames, if that is fewer) so that the squared distances of the frames' mean tokens to the
    means of their runs add up to least."""
    numbers, frames = frame_numbers(view)
    means_BFD = group_means(view.visual(view.hidden_states).float(), numbers, frames)
    _, follows = frame_likeness(view)
    labels = torch.zeros(len(numbers), frames, dtype=torch.long, device=numbers.device)
    for sample in range(len(numbers)):
        count = int(numbers[sample].max()) + 1
        bounds = [0, *((~follows[sample, : count - 1]).nonzero()[:, 0] + 1).tolist(), count] if count else [0]
        label = 0
        for first, last in itertools.pairwise(bounds):
            for start, end in optimal_runs(means_BFD[sample, first:last].double(), segments):
                labels[sample, first + start : first + end] = label
                label += 1
    return labels.gather(1, in_line(numbers, numbers >= 0))


def optimal_runs(frames: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """First frame and the one behind the last of ``count`` runs of ``frames`` [F, D] with the least sum of squared
    distances to their means; of equal divisions the one with the shortest last runs."""
    total, count = len(frames), min(count, len(frames))
    sums = torch.nn.functional.pad(frames.cumsum(0), (0, 0, 1, 0))
    squares = torch.nn.functional.pad(frames.square().sum(1).cumsum(0), (1, 0)).tolist()
    gram = (sums @ sums.T).tolist()

    def spread(a: int, b: int) -> float:
        return squares[b] - squares[a] - (gram[b][b] - 2 * gram[a][b] + gram[a][a]) / (b - a)

    best: list[float] = [0.0, *[float("inf")] * total]
    begins: list[list[int]] = []
    for runs in range(count):
        choices = [[(best[a] + spread(a, b), -a) for a in range(runs, b)] for b in range(total + 1)]
        picks = [min(options) if options else (float("inf"), 0) for options in choices]
        best, begins = [cost for cost, _ in picks], [*begins, [-a for _, a in picks]]
    bounds = [total]
    for starts in reversed(begins):
        bounds.append(starts[bounds[-1]])
    return list(itertools.pairwise(reversed(bounds)))
