"""``kept.png``: the image, what was asked, which patches stayed, and both answers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from prunekit.data.example import Example

SIDE, TEXT, GAP, COLUMNS = 288, 96, 12, 4
INK, PAPER, RIGHT, WRONG, REGION = (24, 24, 27), (255, 255, 255), (21, 128, 61), (185, 28, 28), (250, 204, 21)


def draw_kept(
    examples: Sequence[Example], rows: Sequence[dict[str, Any]], grid: tuple[int, int] | None, path: Path
) -> None:
    """A page of examples, one of each task first, wrong and right as they come: dropped patches dimmed, the answer's
    region framed, question and answers below."""
    panels = overlays(examples, rows, grid, COLUMNS * 2)
    lines = math.ceil(len(panels) / COLUMNS)
    width = GAP + COLUMNS * (SIDE + GAP)
    page = Image.new("RGB", (width, GAP + lines * (SIDE + TEXT + GAP)), PAPER)
    for place, (_, panel) in enumerate(panels):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        top = GAP + place // COLUMNS * (SIDE + TEXT + GAP)
        page.paste(panel, (left, top))
    page.save(path)


def overlays(
    examples: Sequence[Example], rows: Sequence[dict[str, Any]], grid: tuple[int, int] | None, count: int
) -> list[tuple[dict[str, Any], Image.Image]]:
    """Rows of ``count`` examples, one of each task first, each with its panel: image, what stayed, answers."""
    by_id = {row["id"]: row for row in rows if "error" not in row}
    chosen = _one_of_each_task([e for e in examples if e.id in by_id], count)
    return [(by_id[e.id], _panel(e, by_id[e.id], grid)) for e in chosen]


def _one_of_each_task(examples: Sequence[Example], count: int) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.task, example)
    rest = [e for e in examples if e.id not in {f.id for f in first.values()}]
    return [*first.values(), *rest][:count]


def _panel(example: Example, row: dict[str, Any], grid: tuple[int, int] | None) -> Image.Image:
    panel = Image.new("RGB", (SIDE, SIDE + TEXT), PAPER)
    image = example.image().convert("RGB")
    picture = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    kept = set(row["kept"])
    if grid is not None:
        picture = dim(picture, kept, grid)
    draw = ImageDraw.Draw(picture)
    scale = SIDE / image.width, SIDE / image.height
    for x0, y0, x1, y1 in example.regions:
        draw.rectangle((x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]), outline=REGION, width=2)
    panel.paste(picture, (0, 0))
    draw = ImageDraw.Draw(panel)
    y = SIDE + 4
    for line in textwrap.wrap(example.question, 40)[:2]:
        draw.text((0, y), line, fill=INK, font=_font(14))
        y += 17
    for label, answer, good in (
        ("dense", row["dense_prediction"], row["dense_correct"]),
        ("pruned", row["prediction"], row["correct"]),
    ):
        text = f"{label}: {textwrap.shorten(answer, 24) or '(nothing)'}" + (
            "" if good else f"   (not {' / '.join(example.answers)})"
        )
        draw.text((0, y), text, fill=RIGHT if good else WRONG, font=_font(14))
        y += 17
    place = "" if grid is not None else ", places unknown: no fixed grid"
    draw.text((0, y), f"{example.task}, {len(kept)} tokens stay{place}", fill=(113, 113, 122), font=_font(12))
    return panel


def dim(picture: Image.Image, kept: set[int], grid: tuple[int, int]) -> Image.Image:
    """The picture with the patches outside ``kept`` (indices in raster order) washed out."""
    rows, columns = grid
    mask = Image.new("L", (columns, rows), 0)
    for token in kept:
        if token < rows * columns:
            mask.putpixel((token % columns, token // columns), 255)
    pale = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), 0.8)
    return Image.composite(picture, pale, mask.resize(picture.size, Image.Resampling.NEAREST))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
