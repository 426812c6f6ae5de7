"""What one run of a vision encoder remembers, and how its patches are laid out."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunekit.engine.evidence import Evidence
from prunekit.errors import PrunekitError
from prunekit.families.vision import VisionTower, square_order, window_order
from prunekit.tensors.indexing import scatter_where
from prunekit.views.encoder import EncoderView
from prunekit.views.trace import CutRecord
from prunekit.views.vision import VisionRecord


@dataclass
class EncoderRun:
    """State of one run of an encoder; letters as in ``tensors.sequences``, S being the tokens of the running block.

    Attributes:
        record: what the run leaves.
        prefix: tokens before the patches.
        kept: patches that still have a token of their own, bool [T, P].
        index: where each stands in the sequence, long [T, P].
        sources: the patch under whose name each goes on, long [T, P], -1 where it is lost.
        sizes: how many patches a token stands for, [T, P].
        evidence: what blocks said that later cuts read.
        view: the running block, once its attention has been seen.
        hidden: input [T, S, C] of the running block.
        length: S.
        residual: what the cut inside the running block left, [T, S, C] with the S of after it.
        branch: what the block's MLP made of that, of the same shape.
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
    residual: torch.Tensor | None = None
    branch: torch.Tensor | None = None

    def begin(self, hidden: torch.Tensor) -> None:
        """The dense start, from the input [T, S, C] of the first block."""
        images, size = hidden.shape[0], hidden.shape[1] - self.prefix
        number_TP = torch.arange(size, device=hidden.device).expand(images, -1)
        self.kept = torch.ones(images, size, dtype=torch.bool, device=hidden.device)
        self.index, self.sources = number_TP + self.prefix, number_TP
        self.sizes = torch.ones(images, size, device=hidden.device)

    def shrink(self, grid: tuple[int, int], small: tuple[int, int]) -> None:
        """The image has been shrunk from ``grid`` to ``small`` patches: each stands at the centre of its cell."""
        (rows, columns), (high, wide), images = grid, small, len(self.kept)
        row, column = (torch.arange(n, device=self.kept.device) for n in grid)
        centre = ((2 * (row * high // rows) + 1) * rows // (2 * high)) * columns
        sources_P = (centre[:, None] + (2 * (column * wide // columns) + 1) * columns // (2 * wide)).flatten()
        kept_P = torch.zeros(rows * columns, dtype=torch.bool, device=self.kept.device)
        kept_P[sources_P] = True
        self.kept, self.sources = kept_P.expand(images, -1), sources_P.expand(images, -1)
        self.index = ((kept_P.cumsum(0) - 1).clamp(min=0) + self.prefix).expand(images, -1)
        self.sizes = torch.ones(images, rows * columns, device=kept_P.device)
        scores_TP = torch.zeros(images, rows * columns, device=kept_P.device)
        self.record.cuts.append(CutRecord("vision", -1, self.kept, scores_TP, sources=self.sources))

    @property
    def standing(self) -> int:
        """Patches of an image that still have a token."""
        return self.length - self.prefix

    def log_sizes(self) -> torch.Tensor:
        """The logarithm of every token's size [T, 1, 1, S], 0 for the prefix."""
        return scatter_where(self.sizes.log(), self.index, self.kept, self.length)[:, None, None, :]

    def shorten(self, stays: torch.Tensor, order: torch.Tensor, count: int) -> torch.Tensor:
        """Let the ``count`` patches of each image that ``stays`` [T, P] marks stand on, sorted by ``order`` [T, P]:
        which patch each slot behind the prefix now has, long [T, M]."""
        last = torch.iinfo(torch.long).max
        number_TM = order.long().masked_fill(~stays, last).argsort(dim=1, stable=True)[:, :count]
        slots_TM = torch.arange(count, device=number_TM.device).expand_as(number_TM) + self.prefix
        self.index = torch.zeros_like(self.index).scatter(1, number_TM, slots_TM)
        self.kept, self.length = stays, count + self.prefix
        return number_TM


def attention_function(tower: VisionTower, number: int) -> Callable[..., Any]:
    """The attention function that a block of a transformers encoder would call by itself."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    code = sys.modules[type(tower.attentions[number]).forward.__module__]
    eager = getattr(code, "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(tower.implementation, eager)


def note_packing(tower: VisionTower, record: VisionRecord, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """How the images of one run stand in its sequence, by the arguments of a packed encoder's forward."""
    side = round(tower.group**0.5)
    if tower.halves is not None:  # what its merger is given says it
        return
    if tower.averages:
        named = kwargs | dict(zip(("pixel_values", "grid_thw", "merge_sizes"), args, strict=False))
        grids, merges = named["grid_thw"], named["merge_sizes"]
        pairs = zip(grids.tolist(), merges.tolist(), strict=True)
        record.grids = [(h // merge, w // merge) for (frames, h, w), merge in pairs for _ in range(frames)]
        record.pool = lambda values: tower.module.pixel_unshuffle(values, grids, merges)  # type: ignore[operator]
        return
    if not tower.patch_size:
        grids = args[1] if len(args) > 1 else kwargs["grid_thw"]
        record.grids = [(h // side, w // side) for frames, h, w in grids.tolist() for _ in range(frames)]
        record.rows = window_order(tower.module, grids)
        return
    pixels = args[0] if args else kwargs["pixel_values"]
    sizes = args[1] if len(args) > 1 else kwargs.get("image_sizes")
    sizes = [pixels.shape[-2:]] * len(pixels) if sizes is None else sizes
    grids = [(int(height) // tower.patch_size, int(width) // tower.patch_size) for height, width in sizes]
    note_squares(record, grids, side)


def note_merging(record: VisionRecord, sizes: torch.Tensor) -> None:
    """How images stand in what MiniCPM-V's merger joins 2 x 2 of, by their ``sizes`` [images, 2]."""
    note_squares(record, [(int(rows), int(columns)) for rows, columns in sizes], 2)


def note_squares(record: VisionRecord, grids: Sequence[tuple[int, int]], side: int) -> None:
    """Images of ``grids`` of patches in raster order one after the other, whose squares of ``side`` become tokens."""
    record.grids = [(rows // side, columns // side) for rows, columns in grids]
    orders, start = [], 0
    for rows, columns in grids:
        orders.append(square_order(rows, columns, side) + start)
        start += rows * columns
    record.order = torch.cat(orders)


def packed_rows(
    pack: Callable[..., Any],
    features: Iterable[torch.Tensor],
    args: Iterable[object],
    kwargs: Mapping[str, object],
    newline: bool,
) -> torch.Tensor:
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


def frame_pool(resampler: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """LLaVA-NeXT-Video's pooling of frames, for what the encoder says of patches: [T, P, X] to [T, P', X].

    Raises:
        PrunekitError: when it is called, where the pooling is no average.
    """

    def pool(values_TPX: torch.Tensor) -> torch.Tensor:
        if not isinstance(resampler.pool, nn.AvgPool2d):
            name = type(resampler.pool).__name__
            raise PrunekitError(f"view.vision: the model pools frames by {name}, so a token has no average of patches")
        side = math.isqrt(values_TPX.shape[1])
        maps = values_TPX.transpose(1, 2).unflatten(2, (side, side))
        return resampler.pool(maps).flatten(2).transpose(1, 2)

    return pool
