"""``kept.png``: the pictures, what was asked, which patches stayed, and both answers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from prunekit.data.example import Example, Prediction
from prunekit.evaluation.sheets import Sheet, Sheets, dim, panel_counts

SIDE, TEXT, GAP, COLUMNS = 288, 96, 12, 4
BARS, BAR = 36, 28
"""Room under several pictures for their bars, and the height of a full one."""

INK, PAPER, RIGHT, WRONG, REGION = (24, 24, 27), (255, 255, 255), (21, 128, 61), (185, 28, 28), (250, 204, 21)
SHADE = (228, 228, 231)


def draw_kept(examples: Sequence[Example], rows: Sequence[Prediction], sheets: Sheets, path: Path) -> None:
    """A page of examples, one of each task first, wrong and right as they come: dropped patches dimmed, the answer's
    region framed; of several pictures or frames how much of each stays as a bar; question and answers below."""
    panels = overlays(examples, rows, sheets, COLUMNS * 2)
    lines = math.ceil(len(panels) / COLUMNS)
    width = GAP + COLUMNS * (SIDE + GAP)
    page = Image.new("RGB", (width, GAP + lines * (SIDE + TEXT + GAP)), PAPER)
    for place, (_, panel) in enumerate(panels):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        top = GAP + place // COLUMNS * (SIDE + TEXT + GAP)
        page.paste(panel, (left, top))
    page.save(path)


def overlays(
    examples: Sequence[Example], rows: Sequence[Prediction], sheets: Sheets, count: int
) -> list[tuple[Prediction, Image.Image]]:
    """Rows of ``count`` examples, one of each task first, each with its panel: image, what stayed, answers."""
    by_id = {row["id"]: row for row in rows if "error" not in row}
    chosen = _one_of_each_task([e for e in examples if e.id in by_id], count)
    return [(by_id[e.id], _panel(e, by_id[e.id], sheets(e))) for e in chosen]


def _one_of_each_task(examples: Sequence[Example], count: int) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.task, example)
    rest = [e for e in examples if e.id not in {f.id for f in first.values()}]
    return [*first.values(), *rest][:count]


def _panel(example: Example, row: Prediction, sheet: Sheet | None) -> Image.Image:
    panel, kept = Image.new("RGB", (SIDE, SIDE + TEXT), PAPER), set(row["kept"])
    if sheet is None:
        picture = example.image().convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    else:
        picture = _shown(sheet, kept)
    if sheet is None or int(sheet.panels.max()) == 0:
        _frame_regions(picture, example)
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
    place = "" if sheet is not None else ", places unknown"
    draw.text((0, y), f"{example.task}, {len(kept)} tokens stay{place}", fill=(113, 113, 122), font=_font(12))
    return panel


def _shown(sheet: Sheet, kept: set[int]) -> Image.Image:
    """The sheet as a square, what went washed out; under several pictures a bar for each, of how much of it stays."""
    dimmed, counts = dim(sheet.image, sheet.boxes, kept), panel_counts(sheet.panels, kept)
    if len(counts) == 1:
        return dimmed.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(ImageOps.contain(dimmed, (SIDE, SIDE - BARS), Image.Resampling.LANCZOS), (0, 0))
    draw, wide = ImageDraw.Draw(square), SIDE / len(counts)
    for number, (stay, total) in enumerate(counts):
        left, right, foot = number * wide, max((number + 1) * wide - 2, number * wide), SIDE - 1
        draw.rectangle((left, foot - BAR, right, foot), fill=SHADE)
        if stay:
            draw.rectangle((left, foot - BAR * stay / total, right, foot), fill=RIGHT)
    return square


def _frame_regions(picture: Image.Image, example: Example) -> None:
    """A frame around each region of the answer."""
    (width, height), draw = example.image().size, ImageDraw.Draw(picture)
    scale = SIDE / width, SIDE / height
    for x0, y0, x1, y1 in example.regions:
        draw.rectangle((x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]), outline=REGION, width=2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
