"""Components that work on one video at a time: F frames of P tokens each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from prunekit.components.base import Reduced, Reducer, Scorer, Selector
from prunekit.errors import PrunekitError, RowError
from prunekit.tensors.groups import apportion
from prunekit.tensors.ranking import stride, top_k
from prunekit.views.layer import LayerView
from prunekit.views.places import Places


@dataclass
class Video:
    """A video of one sample as it enters a cut; an image is a video of one frame.

    Attributes:
        tokens: hidden states, float32 [F, P, D].
        scores: of the scorer, [F, P], -inf where it has none; zeros where none has been asked yet.
        rows, columns: of a frame, in tokens.
        index: where the tokens stand among the visual tokens of the sample, long [F, P].
        separators: where its newlines and CLS tokens stand, long [n].
        sample: the number of the sample.
        notes: what a selector leaves for the reducer of the same cut.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    rows: int
    columns: int
    index: torch.Tensor
    separators: torch.Tensor
    sample: int
    notes: dict[str, Any]

    @property
    def frames(self) -> int:
        """How many frames, F."""
        return self.index.shape[0]


class VideoScorer(Scorer):
    """Scores each video by itself. A separator has the score of the token before it."""

    uses_places: ClassVar[bool] = True
    least_frames: ClassVar[int] = 2
    """Images, and videos of fewer frames, are refused."""

    def score_video(self, video: Video) -> torch.Tensor:
        """Scores of the tokens of a video, [F, P]."""
        raise TypeError(f"{type(self).__name__} defines no score_video(video)")

    def score(self, view: LayerView) -> torch.Tensor:
        scores_BN = torch.zeros(view.alive.shape, device=view.hidden_states.device)
        for video in videos_of(view, scores_BN, self.least_frames, self.registered_name):
            scores_FP = self.score_video(video).to(scores_BN)
            places, order = video.index.flatten().sort()
            scores_BN[video.sample, places] = scores_FP.flatten()[order]
            before = (torch.searchsorted(places, video.separators) - 1).clamp(min=0)
            scores_BN[video.sample, video.separators] = scores_FP.flatten()[order[before]]
        return scores_BN


class VideoSelector(Selector):
    """Chooses in each video by itself. Videos of a sample share its budget by their size; separators stay, as long as
    they take no more than half of a video's share."""

    exact: ClassVar[bool] = True
    uses_places: ClassVar[bool] = True
    least_frames: ClassVar[int] = 2
    tops_in_decoder: ClassVar[bool] = False
    """Whether a later cut, inside the decoder, keeps the highest scores: a method in two stages."""

    def select_video(self, video: Video, keep: int) -> torch.Tensor:
        """The ``keep`` tokens of a video that stay, bool [F, P]; ``keep`` is at least 1."""
        raise TypeError(f"{type(self).__name__} defines no select_video(video, keep)")

    def select(self, view: LayerView, scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.tops_in_decoder and view.site == "decoder":
            return top_k(scores, quota, view.alive)
        kept_BN, budgets = torch.zeros_like(view.alive), quota.tolist()
        videos = cut_videos(view, scores, self.least_frames, self.registered_name)
        for sample, budget in enumerate(budgets):
            own = [video for video in videos if video.sample == sample]
            for video, share in zip(own, shares_of(own, budget), strict=True):
                between = max(min(len(video.separators), share // 2), share - video.index.numel())
                if share > between:
                    kept_BN[sample, video.index] = self.select_video(video, share - between)
                every = torch.ones(1, len(video.separators), dtype=torch.bool, device=kept_BN.device)
                some = stride(every, torch.tensor([between], device=kept_BN.device))[0]
                kept_BN[sample, video.separators[some]] = True
        return kept_BN


class VideoReducer(Reducer):
    """Makes what stays of a video of all its tokens. Its separators stay as they are, or go."""

    uses_places: ClassVar[bool] = True
    least_frames: ClassVar[int] = 2

    def reduce_video(self, video: Video, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The new tokens of a video, [F, P, D], used where ``kept`` [F, P]; and for each token that goes the number
        (0 .. F·P - 1) of the kept one under which it lives on, long [F, P], -1 for none."""
        raise TypeError(f"{type(self).__name__} defines no reduce_video(video, kept)")

    tops_in_decoder: ClassVar[bool] = False
    """As of a selector: there ``reduce_later`` is asked."""

    def reduce_later(self, tokens: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor) -> Reduced:
        """What a cut inside the decoder leaves: of ``alive`` [B, N] tokens [B, N, D] those ``kept``, as they are."""
        return Reduced(tokens)

    def reduce(  # type: ignore[override]
        self,
        *,
        view: LayerView,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        **rest: object,
    ) -> Reduced:
        if self.tops_in_decoder and view.site == "decoder":
            return self.reduce_later(tokens, kept, alive)
        tokens, sizes = tokens.clone(), sizes.clone()
        sources = torch.full_like(kept, -1, dtype=torch.long)
        for video in cut_videos(view, scores, self.least_frames, self.registered_name):
            at, index = video.sample, video.index.flatten()
            stays = kept[at, index]
            reduced_FPD, target = self.reduce_video(video, stays.view_as(video.index))
            target = torch.where(stays, torch.arange(len(index), device=index.device), target.flatten())
            goes, target = target >= 0, target.clamp(min=0)
            sources[at, index] = torch.where(goes, index[target], -1)
            tokens[at, index] = torch.where(
                stays[:, None], reduced_FPD.flatten(0, 1).to(tokens.dtype), tokens[at, index]
            )
            total = torch.zeros_like(sizes[at, index]).scatter_add(0, target, sizes[at, index] * goes)
            sizes[at, index] = torch.where(stays, total, sizes[at, index])
        return Reduced(tokens, sizes, sources=sources)


def shares_of(videos: list[Video], budget: int) -> list[int]:
    """A sample's budget shared among its videos by their size, separators included."""
    if not videos:
        return []
    sizes = torch.tensor([[video.index.numel() + len(video.separators) for video in videos]])
    return apportion(sizes, torch.tensor([budget]), sizes)[0].tolist()


def cut_videos(view: LayerView, scores: torch.Tensor, least_frames: int, name: str) -> list[Video]:
    """``videos_of`` a cut, the same ones for its selector and its reducer."""
    return view.once(f"videos of the cut {view.layer}", lambda: videos_of(view, scores, least_frames, name))


def videos_of(view: LayerView, scores: torch.Tensor, least_frames: int, name: str) -> list[Video]:
    """The videos of a batch, sample by sample in order, for the component ``name``.

    Raises:
        RowError: for images and videos of fewer frames than ``least_frames``.
        PrunekitError: where an earlier cut has taken tokens out of the frames.
    """
    places, alive = view.places.to(torch.device("cpu")), view.alive.cpu()
    tokens_BND, videos = view.visual(view.hidden_states).float(), []
    if bool(((places.medium >= 0) & ~alive).any()):
        raise PrunekitError(f"'{name}' needs whole frames, but an earlier cut has taken tokens out of them")
    for sample, mediums in enumerate(places.medium.tolist()):
        for medium in range(max(mediums, default=-1) + 1):
            own = places.medium[sample] == medium
            index, rows, columns = arranged(places, sample, own & places.exists[sample])
            if len(index) < least_frames:
                raise RowError(  # other examples of a run may have them
                    f"'{name}' compares frames, and needs videos of at least {least_frames}: "
                    f"sample {sample} has an image, or a video of {len(index)}"
                )
            separators = (own & ~places.exists[sample]).nonzero()[:, 0].to(tokens_BND.device)
            index = index.to(tokens_BND.device)
            own_scores = scores.to(tokens_BND.device)[sample, index]
            videos.append(Video(tokens_BND[sample, index], own_scores, rows, columns, index, separators, sample, {}))
    return videos


def arranged(places: Places, sample: int, own: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Where the tokens ``own`` [N] of one medium stand, by frame, row and column, long [F, P]; its rows and columns."""
    index = own.nonzero()[:, 0]
    frame, row, column = (x[sample, index] for x in (places.frame, places.row, places.column))
    rows, columns, frames = (int(x[sample, index[0]]) for x in (places.rows, places.columns, places.frames))
    index = index[((frame * rows + row) * columns + column).argsort(stable=True)]
    return (index.view(frames, -1) if len(index) % frames == 0 else index[None]), rows, columns
