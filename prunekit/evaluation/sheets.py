"""A contact sheet of an example's pictures and frames, and where on it each visual token stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from prunekit.data.example import Example
from prunekit.evaluation.batches import Batcher
from prunekit.families import Family, make_family
from prunekit.families.geometry import UnknownPlaces, raster
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.media import MediaRecord
from prunekit.views.places import Places, places_of

SIDE = 336
"""Longest side, in pixels, of a sheet with one picture; one with several is twice as large."""

FRAMES = 16
"""Pictures on a sheet: of a longer video these many, evenly spaced."""

PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Sheet:
    """The pictures of one example side by side, and the place of its N visual tokens on them.

    Attributes:
        image: RGB.
        boxes: left, top, right and bottom of each token in fractions of ``image``, float32 [N, 4]; NaN for a token that
            shows nothing (a newline) or whose frame is not on the sheet.
        panels: the picture or frame of each token, numbered through the example, int [N]; -1 for newlines.
    """

    image: Image.Image
    boxes: np.ndarray
    panels: np.ndarray


Sheets = Callable[[Example], Sheet | None]
"""Draws an example's sheet; None where the places of its tokens are unknown."""


def sheets_of(batcher: Batcher) -> Sheets:
    """Sheets for the examples of a model."""
    family = make_family(batcher.loaded.model)
    options = getattr(batcher.loaded.processor, "image_processor", None)

    def draw(example: Example) -> Sheet | None:
        places, media = example_places(family, batcher.encoded([example])), media_of(example)
        if places is None:
            return None
        if int(places.medium.max()) + 1 > len(media):  # a model that is given frames as images (InternVL)
            media = [[frame] for frames in media for frame in frames]
        if int(places.medium.max()) + 1 != len(media):
            return None
        if getattr(options, "do_center_crop", False) and not bool(places.thumbnail.any()):
            media = [[centre(frame, options.size, options.crop_size) for frame in frames] for frames in media]  # type: ignore[union-attr]
        return sheet(media, places)

    return draw


def media_of(example: Example) -> list[list[Image.Image]]:
    """What an example shows, in order: of each image itself, of its video the sampled frames."""
    clip = example.clip()
    return [[image] for image in example.images()] + ([] if clip is None else [list(clip.frames)])


def example_places(family: Family, inputs: Mapping[str, torch.Tensor]) -> Places | None:
    """Where the visual tokens of one example stand, by its processor's output; None where that does not say it."""
    ids = inputs["input_ids"]
    visual = family.find_visual(ids, dict(inputs))
    try:
        layout = PromptLayout.build(ids, inputs.get("attention_mask"), visual)
        return MediaRecord.of_inputs(family, inputs).places(layout)
    except UnknownPlaces:
        count, grid = int(visual.sum()), family.grid
        if grid is None or not count or count % (grid[0] * grid[1]):
            return None
        images = [raster("image", 1, *grid)] * (count // (grid[0] * grid[1]))
        return places_of({"image": images}, [["image"] * count])


def centre(image: Image.Image, size: Mapping[str, int], crop: Mapping[str, int]) -> Image.Image:
    """The part of a picture that CLIP shows: its processor scales the shorter side to ``size`` and crops the middle."""
    shrink = size.get("shortest_edge", min(size.get("height", 0), size.get("width", 0))) / min(image.size)
    if not shrink:
        return image
    wide, high = min(image.width, crop["width"] / shrink), min(image.height, crop["height"] / shrink)
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    return image.crop((round(left), round(top), round(left + wide), round(top + high)))


def sheet(media: Sequence[Sequence[Image.Image]], places: Places) -> Sheet:
    """The sheet of one sample.

    Args:
        media: the frames of each image (one) and video in order. Where the encoder joins neighbouring frames, a
            frame of tokens shows the first of them.
        places: of a batch of one.
    """
    medium, frame, row, column, frames, rows, columns, small = (
        getattr(places, name)[0].cpu().numpy()
        for name in ("medium", "frame", "row", "column", "frames", "rows", "columns", "thumbnail")
    )
    shows = row >= 0
    keys = np.stack([medium, frame, small], axis=1)
    distinct, panels = np.unique(keys[shows], axis=0, return_inverse=True)
    numbers = np.full(len(row), -1)
    numbers[shows] = panels.reshape(-1)
    chosen = np.unique(np.linspace(0, len(distinct) - 1, min(FRAMES, len(distinct))).round().astype(int))
    pictures = []
    for number in chosen:
        which, at, _ = distinct[number]
        total = int(frames[numbers == number][0])
        pictures.append(media[which][at * len(media[which]) // total])
    image, windows = _laid_out(pictures)
    boxes = np.full((len(row), 4), np.nan, dtype=np.float32)
    for number, window in zip(chosen, windows, strict=True):
        own = numbers == number
        if distinct[number][2]:  # a thumbnail's grid is its own: its tokens are those of its rows in order
            (high, y), (wide, x) = (_ranks(axis[own]) for axis in (row, column))
        else:
            high, wide, y, x = rows[own][0], columns[own][0], row[own], column[own]
        left, top, right, bottom = window
        edges = np.stack([x / wide, y / high, (x + 1) / wide, (y + 1) / high], axis=1)
        boxes[own] = edges * ([right - left, bottom - top] * 2) + [left, top] * 2
    return Sheet(image, boxes, numbers)


def _ranks(values: np.ndarray) -> tuple[int, np.ndarray]:
    """How many distinct values there are, and the rank of each."""
    distinct, ranks = np.unique(values, return_inverse=True)
    return len(distinct), ranks


def _laid_out(pictures: Sequence[Image.Image]) -> tuple[Image.Image, list[tuple[float, float, float, float]]]:
    """Pictures in rows on one page, and where each lies in fractions of it: left, top, right, bottom."""
    across = math.ceil(math.sqrt(len(pictures)))
    side = SIDE if across == 1 else 2 * SIDE // across
    small = [picture.convert("RGB") for picture in pictures]
    for picture in small:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    gap = 0 if across == 1 else 4
    wide, high = (max(picture.size[axis] for picture in small) + gap for axis in (0, 1))
    page = Image.new("RGB", (across * wide - gap, math.ceil(len(small) / across) * high - gap), PAPER)
    windows = []
    for number, picture in enumerate(small):
        x, y = number % across * wide, number // across * high
        page.paste(picture, (x, y))
        edges = (x / page.width, y / page.height, (x + picture.width) / page.width, (y + picture.height) / page.height)
        windows.append(edges)
    return page, windows


def dim(image: Image.Image, boxes: np.ndarray, kept: Collection[int]) -> Image.Image:
    """The sheet with the places of all tokens outside ``kept`` (their numbers) washed out."""
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    for token in kept:
        if token < len(boxes) and not np.isnan(boxes[token]).any():
            draw.rectangle(pixels(boxes[token], image), fill=255)
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.8)
    return Image.composite(image, pale, mask)


def pixels(box: np.ndarray, image: Image.Image) -> tuple[int, int, int, int]:
    """The first and last pixels of a box in fractions: left, top, right, bottom, each inside."""
    left, top, right, bottom = np.round(box * ([image.width, image.height] * 2)).astype(int)
    return int(left), int(top), max(int(right) - 1, int(left)), max(int(bottom) - 1, int(top))


def panel_counts(panels: np.ndarray, kept: Collection[int]) -> list[tuple[int, int]]:
    """Of each picture or frame, how many tokens stay and how many there were."""
    total = np.bincount(panels[panels >= 0]) if len(panels) else np.zeros(0, dtype=int)
    chosen = panels[[token for token in kept if token < len(panels)]]
    stay = np.bincount(chosen[chosen >= 0], minlength=len(total))
    return [(int(a), int(b)) for a, b in zip(stay, total, strict=True)]
