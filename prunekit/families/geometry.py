"""Which image or video each visual token shows, and where in it: by the arguments with which a model encoded them.

A reader knows one way of laying visual tokens out. It sees one call of the model's ``get_image_features`` or
``get_video_features`` and answers with the media of that call, in the order in which their tokens fill the
placeholders. What a reader cannot know from the model's inputs it says by ``UnknownPlaces``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnknownPlaces(PrunekitError):
    """The model's inputs do not say where its visual tokens stand."""


@dataclass(frozen=True)
class MediaCall:
    """One call by which a model encoded images or videos.

    Attributes:
        kind: "image" or "video".
        arguments: of the call, by name.
        visual: where the placeholders of this kind stand, bool [B, S], of samples as they were encoded (no beams).
        input_ids: [B, S], None for a prompt given as embeddings.
    """

    kind: str
    arguments: dict[str, object]
    visual: torch.Tensor
    input_ids: torch.Tensor | None = None

    def first(self, *names: str) -> Any:
        """The first of these arguments that was given, None if none was."""
        return next((self.arguments[name] for name in names if self.arguments.get(name) is not None), None)


@dataclass(frozen=True)
class Medium:
    """One image or video, n visual tokens in the order in which they stand in the sequence.

    Attributes:
        kind: "image" or "video".
        frames, rows, columns: of the whole, in tokens; an image has one frame.
        tokens: frame, row and column of each token, and 1 for those of a thumbnail, long [n, 4]. Frame, row and column
            of a separator (a newline, a CLS token) are -1. A thumbnail is a small copy of the whole picture beside its
            tiles: row and column are those of the whole picture, at the middle of what the token shows.
    """

    kind: str
    frames: int
    rows: int
    columns: int
    tokens: torch.Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)


Reader = Callable[["PreTrainedModel", MediaCall], list[Medium]]
"""(the model's core, a call) -> its media in order."""

SEPARATOR = torch.tensor([[-1, -1, -1, 0]])
"""A token of the model's own, which shows nothing."""


def raster(kind: str, frames: int, rows: int, columns: int) -> Medium:
    """Frames of rows of columns, every token in its turn."""
    tokens = torch.cartesian_prod(*(torch.arange(n) for n in (frames, rows, columns)), torch.zeros(1, dtype=torch.long))
    return Medium(kind, frames, rows, columns, tokens)


def joined(whole: Medium, *parts: torch.Tensor) -> Medium:
    """A medium of the size of ``whole``, whose tokens are these ``parts`` [n, 4] one after the other."""
    return replace(whole, tokens=torch.cat(parts))


def thumbnail(rows: int, columns: int, whole: Medium) -> torch.Tensor:
    """The tokens of a small copy of ``whole`` on a grid of its own, [n, 4]."""
    frame, row, column, _ = raster("image", 1, rows, columns).tokens.unbind(1)
    row, column = (2 * row + 1) * whole.rows // (2 * rows), (2 * column + 1) * whole.columns // (2 * columns)
    return torch.stack([frame, row, column, torch.ones_like(frame)], dim=1)


def with_newlines(whole: Medium) -> torch.Tensor:
    """The tokens of a picture with a separator behind each of its rows, [n, 4]."""
    lines = whole.tokens.view(whole.rows, whole.columns, 4)
    return torch.cat([lines, SEPARATOR.expand(whole.rows, 1, 4)], dim=1).flatten(0, 1)


# -- ways of laying visual tokens out --------------------------------------------------------------------------------


def fixed_grid(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """LLaVA, PaliGemma: every image has the same grid of patches. Pixtral's encoder under LLaVA takes other sizes."""
    sizes = call.first("image_sizes")
    if sizes is not None and core.config.vision_config.model_type == "pixtral":
        return _by_sizes(sizes, core.config.vision_config.patch_size)
    side = _side(core)
    return [raster("image", 1, side, side) for _ in range(len(call.first("pixel_values")))]


def pooled_grid(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """Gemma 3: patches are averaged to a grid of ``mm_tokens_per_image``. Crops (pan and scan) are pictures of their
    own: nothing in the inputs says otherwise."""
    side = math.isqrt(core.config.mm_tokens_per_image)
    return [raster("image", 1, side, side) for _ in range(len(call.first("pixel_values")))]


def merged_sizes(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """Mistral 3: images of any size, squares of patches merged."""
    config = core.config
    return _by_sizes(call.first("image_sizes"), config.vision_config.patch_size * config.spatial_merge_size)


def merged_grids(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """Qwen-VL, GLM-4V, VideoLLaMA 3: frames, rows and columns of patches are an input, squares of them merged."""
    grids = call.first("image_grid_thw", "video_grid_thw").tolist()
    merges = call.first("image_merge_sizes", "video_merge_sizes")
    merges = [core.visual.spatial_merge_size] * len(grids) if merges is None else merges.tolist()
    return [raster(call.kind, t, h // m, w // m) for (t, h, w), m in zip(grids, merges, strict=True)]


def tiled(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """LLaVA-NeXT: a thumbnail, then the tiles joined to one picture without their padding, a newline behind each row.

    LLaVA-OneVision shrinks large pictures (``anyres_max``), and of several images in a sample none is cut.
    """
    if call.kind == "video":
        return _pooled_videos(core, call)
    code, side, config = sys.modules[type(core).__module__], _side(core), core.config
    size, newline = config.vision_config.image_size, getattr(core, "image_newline", None) is not None
    counts = call.first("batch_num_images")
    cuts = [True] * len(call.first("image_sizes")) if counts is None else [n == 1 for n in counts for _ in range(n)]
    aspect = call.first("vision_aspect_ratio") or getattr(config, "vision_aspect_ratio", "")
    media = []
    for image_size, cut in zip(call.first("image_sizes"), cuts, strict=True):
        if not cut:
            plain = raster("image", 1, side, side)
            media.append(joined(plain, plain.tokens, SEPARATOR) if newline else plain)
            continue
        high, wide = code.get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, size)
        rows, columns = code.unpad_image(torch.zeros(1, high * side, wide * side), image_size).shape[1:]
        if aspect.startswith("anyres_max_"):
            ratio = math.sqrt(rows * columns / (int(aspect.removeprefix("anyres_max_")) * side**2))
            rows, columns = (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
        whole = raster("image", 1, rows, columns)
        media.append(joined(whole, thumbnail(side, side, whole), with_newlines(whole) if newline else whole.tokens))
    return media


def frames_with_cls(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """Video-LLaVA: images as LLaVA's; each frame of a video begins with its CLS token."""
    side = _side(core)
    if call.kind == "image":
        return [raster("image", 1, side, side) for _ in range(len(call.first("pixel_values", "pixel_values_images")))]
    videos, frames = call.first("pixel_values_videos").shape[:2]
    whole = raster("video", frames, side, side)
    parts = [torch.cat([SEPARATOR, tokens]) for tokens in whole.tokens.split(side * side)]
    return [joined(whole, *parts)] * videos


def shuffled_tiles(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """InternVL: pixel shuffle joins squares of patches; an image's tiles follow each other, the thumbnail last.

    Raises:
        UnknownPlaces: for an image of several tiles: its inputs hold how many, not in how many rows.
    """
    side = round(_side(core) * core.config.downsample_ratio)
    lengths = [length for runs in _runs(call) for _, length in runs]
    if any(length != side * side for length in lengths):
        raise UnknownPlaces(
            f"'{core.config.model_type}' was given images of several tiles: in how many rows they stand is not among "
            "its inputs (crop_to_patches=False in its processor leaves images whole)"
        )
    return [raster("image", 1, side, side) for _ in lengths]


def tiles_in_text(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """Idefics 3, SmolVLM: words of the prompt stand between tiles; a fence and the tile's name within a row, a newline
    more at its end, and one name for all thumbnails, which come last (or stand alone).

    Raises:
        UnknownPlaces: for a prompt that is not written so.
    """
    side, name, media = _side(core) // core.config.scale_factor, core.config.model_type, []
    for runs in _marked_runs(call):
        if len({run.fence for run in runs} | {run.after for run in runs[-1:]}) > 1 and len(runs) > 1:
            raise UnknownPlaces(f"'{name}': its tiles stand between other words than its processor writes")
        media += _pictures(runs, [(side, side)] * len(runs), first=False, name=name)
    return media


def slices_in_text(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """MiniCPM-V 4.6: as ``tiles_in_text``, with the thumbnail first, one name for all tiles, and sizes in the inputs.

    Raises:
        UnknownPlaces: for a prompt that is not written so.
    """
    config, mode = core.config, call.first("downsample_mode")
    merges = config.merger_times + (0 if (mode or config.downsample_mode) == "4x" else 1)
    step = config.merge_kernel_size[0] ** config.merger_times * (2 if merges > config.merger_times else 1)
    sizes = [(h // step, w // step) for h, w in call.first("target_sizes", "target_sizes_videos").tolist()]
    media, start = [], 0
    for runs in _marked_runs(call):
        own, start = sizes[start : start + len(runs)], start + len(runs)
        if len(own) < len(runs):
            raise UnknownPlaces(f"'{config.model_type}': {len(sizes)} sizes for more pictures than that")
        if call.kind == "video":
            media += _videos(runs, own)
        elif len({run.mark for run in runs}) > 2:
            raise UnknownPlaces(f"'{config.model_type}': its tiles stand between other words than its processor writes")
        else:
            media += _pictures(runs, own, first=True, name=config.model_type)
    return media


# -- parts of the above ----------------------------------------------------------------------------------------------


def _side(core: PreTrainedModel) -> int:
    """Patches on a side of an image, in an encoder of images of one size."""
    vision = core.config.vision_config
    size, patch = (n if isinstance(n, int) else n[0] for n in (vision.image_size, vision.patch_size))
    return size // patch


def _by_sizes(sizes: Iterable[Sequence[int]], step: int) -> list[Medium]:
    return [raster("image", 1, int(height) // step, int(width) // step) for height, width in sizes]


def _pooled_videos(core: PreTrainedModel, call: MediaCall) -> list[Medium]:
    """LLaVA-NeXT-Video pools by ``spatial_pool_stride``; LLaVA-OneVision by two, with a newline behind the video."""
    videos, frames = call.first("pixel_values_videos").shape[:2]
    if hasattr(core, "apply_pooling"):
        side = math.ceil(_side(core) / 2)
        plain = raster("video", frames, side, side)
        return [joined(plain, plain.tokens, SEPARATOR)] * videos
    side = _side(core) // core.config.spatial_pool_stride
    return [raster("video", frames, side, side)] * videos


def _runs(call: MediaCall) -> list[list[tuple[int, int]]]:
    """Start and length of each run of neighbouring placeholders, sample by sample."""
    samples = []
    for row in call.visual.tolist():
        place, runs = 0, []
        for visual, group in groupby(row):
            length = len(list(group))
            if visual:
                runs.append((place, length))
            place += length
        samples.append(runs)
    return samples


@dataclass(frozen=True)
class _Run:
    """A run of placeholders between words.

    Attributes:
        length: placeholders.
        mark, fence: the word before it, and the one before that; -1 for none.
        after: the word behind it.
        gap: words since the run before.
    """

    length: int
    mark: int
    fence: int
    after: int
    gap: int


def _marked_runs(call: MediaCall) -> list[list[_Run]]:
    if call.input_ids is None:
        raise UnknownPlaces("the prompt was given as inputs_embeds: the words between tiles are not known")
    samples = []
    for ids, runs in zip(call.input_ids.tolist(), _runs(call), strict=True):
        words, end, marked = [-1, -1, *ids, -1], 0, []
        for start, length in runs:
            after = words[start + length + 2]
            marked.append(_Run(length, words[start + 1], words[start], after, start - end))
            end = start + length
        samples.append(marked)
    return samples


def _pictures(runs: list[_Run], sizes: list[tuple[int, int]], first: bool, name: str) -> list[Medium]:
    """The pictures of a sample: each a thumbnail ``first`` or last, known by its mark, and tiles in rows."""
    if not runs:
        return []
    if any(run.length != rows * columns for run, (rows, columns) in zip(runs, sizes, strict=True)):
        raise UnknownPlaces(f"'{name}': {[run.length for run in runs]} visual tokens in a row, tiles of {sizes}")
    mark = runs[0 if first else -1].mark
    groups: list[list[int]] = []
    for number, run in enumerate(runs):
        starts = run.mark == mark if first else not groups or runs[groups[-1][-1]].mark == mark
        groups.append([number]) if starts else groups[-1].append(number)
    media = []
    for group in groups:
        tiles, small = (group[1:], group[0]) if first else (group[:-1], group[-1])
        if not tiles:
            media.append(raster("image", 1, *sizes[small]))
            continue
        whole = _tiles_joined([runs[n] for n in tiles], sizes[tiles[0]], name)
        copy = thumbnail(*sizes[small], whole)
        media.append(joined(whole, *([copy, whole.tokens] if first else [whole.tokens, copy])))
    return media


def _tiles_joined(tiles: list[_Run], size: tuple[int, int], name: str) -> Medium:
    """Tiles of one ``size`` as one picture; a new row of them begins where more words stand between than elsewhere."""
    gaps = [run.gap for run in tiles[1:]]
    narrow = min(gaps, default=0)
    starts = [0, *(n + 1 for n, gap in enumerate(gaps) if gap > narrow)] if max(gaps, default=0) > narrow else [0]
    if len(tiles) > 1 and narrow > 2:  # one tile in each row: all gaps are those of row ends
        starts = list(range(len(tiles)))
    wide = len(tiles) // len(starts)
    if starts != list(range(0, len(tiles), wide)):
        raise UnknownPlaces(f"'{name}': tiles of an image stand in rows of unequal length")
    rows, columns = size
    tile = raster("image", 1, rows, columns).tokens
    offsets = [[0, number // wide * rows, number % wide * columns, 0] for number in range(len(tiles))]
    whole = Medium("image", 1, len(starts) * rows, wide * columns, tile)
    return joined(whole, *(tile + torch.tensor(offset) for offset in offsets))


def _videos(runs: list[_Run], sizes: list[tuple[int, int]]) -> list[Medium]:
    """Frames of one size, which follow each other with few words between, as one video."""
    groups: list[list[int]] = []
    for number, run in enumerate(runs):
        follows = groups and run.gap <= 3 and sizes[number] == sizes[groups[-1][-1]]
        groups[-1].append(number) if follows else groups.append([number])
    return [raster("video", len(group), *sizes[group[0]]) for group in groups]
