"""Builds the two atlases under assets/sprites from the npm package emoji-datasource-google and a TrueType font.

python -m tools.build_sprites --images package/img/google/64 --font DejaVuSans-Bold.ttf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from prunekit.data.render import COLUMNS, GLYPH, SPRITE, SPRITES
from prunekit.data.words import GROUPS, LETTERS


def build_objects(images: Path) -> Image.Image:
    """All kinds on one RGBA sheet, COLUMNS to a row."""
    codes = [code for group in GROUPS.values() for code in group.values()]
    rows = -(-len(codes) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for index, code in enumerate(codes):
        row, column = divmod(index, COLUMNS)
        sheet.paste(Image.open(images / f"{code}.png").convert("RGBA"), (column * SPRITE, row * SPRITE))
    return sheet


def build_letters(font: Path) -> Image.Image:
    """All letters in capitals side by side, as coverage in one channel."""
    face = ImageFont.truetype(str(font), 17)
    sheet = Image.new("L", (GLYPH[0] * len(LETTERS), GLYPH[1]))
    for index, letter in enumerate(LETTERS.upper()):
        glyph = Image.new("L", GLYPH)
        ImageDraw.Draw(glyph).text((GLYPH[0] / 2, GLYPH[1] / 2), letter, font=face, fill=255, anchor="mm")
        sheet.paste(glyph, (index * GLYPH[0], 0))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--font", type=Path, required=True)
    arguments = parser.parse_args()
    SPRITES.mkdir(parents=True, exist_ok=True)
    build_objects(arguments.images).save(SPRITES / "objects.png", optimize=True)
    build_letters(arguments.font).save(SPRITES / "letters.png", optimize=True)


if __name__ == "__main__":
    main()
