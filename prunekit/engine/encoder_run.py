"""What one run of a vision encoder remembers, and how its patches are laid out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.engine.evidence import Evidence
from prunekit.errors import PrunekitError
from prunekit.families.vision import VisionTower
from prunekit.tensors.indexing import scatter_where
from prunekit.views.encoder import EncoderView
from prunekit.views.trace import CutRecord
from prunekit.views.vision import VisionRecord


@dataclass
class EncoderRun:
    """State of one run of an encoder whose images have ``patches`` patches each; letters as in ``vision``.

    ``kept`` [T, P] marks the patches that still have a token of their own, ``index`` [T, P] says where each stands in
    the sequence, ``sources`` [T, P] the patch under whose name each goes on (-1: nowhere), ``sizes`` [T, P] how many
    patches a token stands for.
    """

    record: VisionRecord
    prefix: int
    kept: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    index: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    sources: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    sizes: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    evidence: Evidence = field(default_factory=Evidence)
    view: EncoderView | None = None
    hidden: torch.Tensor | None = None
    length: int = 0
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    branch: torch.Tensor | None = None

    def begin(self, hidden: torch.Tensor) -> None:
        """The dense start, from the input [T, S, C] of the first block."""
        images, size = hidden.shape[0], hidden.shape[1] - self.prefix
        places = torch.arange(size, device=hidden.device).expand(images, -1)
        self.kept = torch.ones(images, size, dtype=torch.bool, device=hidden.device)
        self.index, self.sources = places + self.prefix, places
        self.sizes = torch.ones(images, size, device=hidden.device)

    def shrink(self, grid: tuple[int, int], small: tuple[int, int]) -> None:
        """The image has been shrunk from ``grid`` to ``small`` patches: each stands at the centre of its cell."""
        (rows, columns), (high, wide), images = grid, small, len(self.kept)
        row, column = (torch.arange(n, device=self.kept.device) for n in grid)
        centre = ((2 * (row * high // rows) + 1) * rows // (2 * high)) * columns
        sources = (centre[:, None] + (2 * (column * wide // columns) + 1) * columns // (2 * wide)).flatten()
        kept = torch.zeros(rows * columns, dtype=torch.bool, device=self.kept.device)
        kept[sources] = True
        self.kept, self.sources = kept.expand(images, -1), sources.expand(images, -1)
        self.index = ((kept.cumsum(0) - 1).clamp(min=0) + self.prefix).expand(images, -1)
        self.sizes = torch.ones(images, rows * columns, device=kept.device)
        scores = torch.zeros(images, rows * columns, device=kept.device)
        self.record.cuts.append(CutRecord("vision", -1, self.kept, scores, sources=self.sources))

    @property
    def standing(self) -> int:
        """Patches of an image that still have a token."""
        return self.length - self.prefix

    def log_sizes(self) -> torch.Tensor:
        """The logarithm of every token's size [T, 1, 1, S], 0 for the prefix."""
        return scatter_where(self.sizes.log(), self.index, self.kept, self.length)[:, None, None, :]

    def shorten(self, stays: torch.Tensor, order: torch.Tensor, count: int) -> torch.Tensor:
        """Let ``count`` patches of each image stand on, in ``order`` (a key [T, P]): their places, [T, count]."""
        last = torch.iinfo(torch.long).max
        places = order.long().masked_fill(~stays, last).argsort(dim=1, stable=True)[:, :count]
        ranks = torch.arange(count, device=places.device).expand_as(places) + self.prefix
        self.index = torch.zeros_like(self.index).scatter(1, places, ranks)
        self.kept, self.length = stays, count + self.prefix
        return places


def attention_function(tower: VisionTower, number: int) -> Callable[..., Any]:
    """The attention function that a block of a transformers encoder would call by itself."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    code = sys.modules[type(tower.attentions[number]).forward.__module__]
    eager = getattr(code, "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(tower.implementation, eager)


def packed_grids(tower: VisionTower, grids: torch.Tensor) -> list[tuple[int, int]]:
    """Rows and columns of visual tokens of each image or frame, from [images, (frames, rows, columns)] of patches."""
    side = round(tower.group**0.5)
    return [(rows // side, columns // side) for frames, rows, columns in grids.tolist() for _ in range(frames)]


def packed_rows(pack: Callable[..., Any], features: Any, args: Any, kwargs: Any, newline: bool) -> torch.Tensor:
    """The row behind each token that ``pack`` makes of tiles [tiles, P, D] of several images; -1 for a newline.

    Raises:
        PrunekitError: where tiles are interpolated, so that no patch stands behind a token.
    """
    numbers, start = [], 0
    for image in features:
        count = image.shape[0] * image.shape[1]
        number = torch.arange(start, start + count, dtype=torch.float64, device=image.device)
        numbers.append(number.reshape(*image.shape[:2], 1))
        start += count
    mark = torch.full((1,), -1.0, dtype=torch.float64) if newline else None
    packed, _ = pack(numbers, *args, image_newline=mark, **kwargs)
    numbered = torch.cat(list(packed))[:, 0]
    rows = numbered.round().long()
    if not torch.equal(rows.to(numbered.dtype), numbered):
        raise PrunekitError("tiles are interpolated here: no patch of its own stands behind a visual token")
    return rows
