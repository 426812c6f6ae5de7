"""Where every visual token stands: which image or video of its sample, frame, row and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from prunekit.families.geometry import Medium, UnknownPlaces


@dataclass(frozen=True)
class Places:
    """Where the visual tokens of a batch stand: ``view.places``. All are [B, N], padded like scores.

    Attributes:
        medium: number of the image or video in its sample, long; -1 where a shorter sample is padded.
        frame, row, column: in it, long; -1 for separators (newlines, CLS tokens) and padding. Tiles of one image have
            their place in the whole picture; a thumbnail's tokens have that of the middle of what they show.
        frames, rows, columns: of the whole medium, in tokens, long; 0 where padded.
        thumbnail: tokens of a small copy of the picture beside its tiles, bool.
        video: tokens of videos, bool.
        seconds: since the start of the video, float; NaN where it is not known.
    """

    medium: torch.Tensor
    frame: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    frames: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    thumbnail: torch.Tensor
    video: torch.Tensor
    seconds: torch.Tensor

    @property
    def exists(self) -> torch.Tensor:
        """Tokens that show a place of a picture, bool [B, N]: no separators, no padding."""
        return self.row >= 0

    def to(self, device: torch.device) -> Places:
        """The same on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def grid_places(images: int, grid: tuple[int, int], device: torch.device) -> Places:
    """Images of one size, each a sample: the patches of a block of the encoder, [T, P]."""
    rows, columns = grid
    number = torch.arange(rows * columns, device=device).expand(images, -1)
    one, nothing = torch.ones_like(number), torch.zeros_like(number, dtype=torch.bool)
    return Places(
        medium=one * 0,
        frame=one * 0,
        row=number // columns,
        column=number % columns,
        frames=one,
        rows=one * rows,
        columns=one * columns,
        thumbnail=nothing,
        video=nothing,
        seconds=torch.full(number.shape, torch.nan, device=device),
    )


def places_of(
    media: Mapping[str, Sequence[Medium]], kinds: Sequence[Sequence[str]], repeats: int = 1, pace: Sequence[float] = ()
) -> Places:
    """The places of a batch.

    Args:
        media: of each kind, in the order in which they fill its placeholders across the batch.
        kinds: for each sample as it was encoded, the kind of each visual token in order.
        repeats: how often each sample stands in the batch (beams, returned sequences).
        pace: seconds from one frame to the next, for each video; empty if they are not known.

    Raises:
        UnknownPlaces: where media and placeholders disagree.
    """
    queues = {kind: list(items) for kind, items in media.items()}
    paces, size = list(pace), max(map(len, kinds), default=0)
    rows = []
    for sample in kinds:
        tokens = torch.full((len(FIELDS), size), -1, dtype=torch.long)
        tokens[FIELDS.index("frames") :] = 0
        seconds = torch.full((size,), torch.nan)
        place, number = 0, 0
        while place < len(sample):
            kind = sample[place]
            if not queues.get(kind):
                raise UnknownPlaces(f"more {kind} placeholders than the model has encoded tokens for")
            medium = queues[kind].pop(0)
            step = paces.pop(0) if kind == "video" and paces else torch.nan
            end = place + len(medium)
            if sample[place:end] != [kind] * len(medium):
                raise UnknownPlaces(f"an {kind} of {len(medium)} tokens does not fit its placeholders")
            tokens[:, place:end] = _tokens_of(medium, number)
            seconds[place:end] = torch.where(medium.tokens[:, 0] < 0, torch.nan, medium.tokens[:, 0] * step)
            place, number = end, number + 1
        rows.append((tokens, seconds))
    if left := {kind: len(items) for kind, items in queues.items() if items}:
        raise UnknownPlaces(f"media without placeholders: {left}")
    tokens = torch.stack([tokens for tokens, _ in rows]).repeat_interleave(repeats, 0)
    seconds = torch.stack([seconds for _, seconds in rows]).repeat_interleave(repeats, 0)
    columns = dict(zip(FIELDS, tokens.unbind(1), strict=True))
    marks = {name: columns.pop(name) > 0 for name in ("thumbnail", "video")}
    return Places(**columns, **marks, seconds=seconds)


FIELDS = ("medium", "frame", "row", "column", "frames", "rows", "columns", "thumbnail", "video")


def _tokens_of(medium: Medium, number: int) -> torch.Tensor:
    """The fields of one medium's tokens, long [fields, n]."""
    whole = torch.tensor([medium.frames, medium.rows, medium.columns]).expand(len(medium), -1)
    frame_row_column, small = medium.tokens[:, :3], medium.tokens[:, 3:]
    one = torch.ones_like(small)
    return torch.cat([one * number, frame_row_column, whole, small, one * (medium.kind == "video")], dim=1).T
