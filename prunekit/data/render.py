"""Draws a scene as an RGB image: a noisy ground with clutter, objects on tiles, signs."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prunekit.data.scene import BOARD, LETTER, SIZE, Item, Scene, Sign
from prunekit.data.words import COLORS, KINDS, LETTERS

SPRITES = Path(__file__).resolve().parent.parent / "assets" / "sprites"
SPRITE = 64  # pixels, side of a sprite in the atlas
COLUMNS = 8  # sprites in a row of the atlas
GLYPH = (14, 16)  # pixels, width and height of a letter in its atlas
BORDER = 3  # pixels of tile around a sprite


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of SIZE x SIZE pixels; the same scene gives the same pixels."""
    rng = np.random.RandomState(_hash(scene.seed))  # RandomState: its stream is frozen across numpy versions
    image = _ground(scene.ground, rng)
    _clutter(image, rng)
    for item in scene.items:
        _draw_item(image, item, rng)
    for sign in scene.signs:
        _draw_sign(image, sign, rng)
    noisy = np.asarray(image, dtype=np.int16) + _noise(rng)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _hash(seed: str) -> int:
    """A stable 31-bit number of a string (FNV-1a)."""
    value = 2166136261
    for byte in seed.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    return np.random.RandomState(0).normal(0, 7, (2 * SIZE, 2 * SIZE, 3)).astype(np.int16)


def _noise(rng: np.random.RandomState) -> np.ndarray:
    """Pixel noise [SIZE, SIZE, 3]: a random window of one bank, cheaper than drawing it anew."""
    top, left = rng.randint(0, SIZE, 2)
    return _noise_bank()[top : top + SIZE, left : left + SIZE]


def _ground(ground: str, rng: np.random.RandomState) -> Image.Image:
    """A ground of two muted colours."""
    first, second = rng.randint(70, 200, (2, 3)).astype(np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if ground == "linear":
        blend = (along - along.min()) / np.ptp(along)
    elif ground == "radial":
        blend = np.sqrt((x - rng.uniform(0, 1)) ** 2 + (y - rng.uniform(0, 1)) ** 2).clip(0, 1)
    elif ground == "blobs":
        coarse = Image.fromarray((rng.uniform(0, 1, (6, 6)) * 255).astype(np.uint8))
        blend = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    elif ground == "stripes":
        blend = 0.5 + 0.5 * np.sin(along * 2 * math.pi * rng.uniform(4, 9))
    elif ground == "checker":
        cells = rng.randint(5, 10)
        blend = ((x * cells).astype(int) + (y * cells).astype(int)) % 2 * 0.6 + 0.2
    else:
        raise ValueError(f"unknown ground {ground!r}")
    pixels = first * (1 - blend[..., None]) + second * blend[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def _clutter(image: Image.Image, rng: np.random.RandomState) -> None:
    """Small plain shapes that are no objects."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(6, 14)):
        x, y, size = rng.randint(0, SIZE), rng.randint(0, SIZE), rng.randint(3, 11)
        color = tuple(int(c) for c in rng.randint(40, 230, 3))
        if rng.randint(2):
            draw.ellipse((x, y, x + size, y + size), fill=color)
        else:
            draw.line((x, y, x + rng.randint(-14, 15), y + rng.randint(-14, 15)), fill=color, width=3)


@lru_cache(maxsize=1024)
def _sprite(kind: str, side: int) -> Image.Image:
    atlas = _atlas("objects.png")
    row, column = divmod(KINDS.index(kind), COLUMNS)
    box = (column * SPRITE, row * SPRITE, (column + 1) * SPRITE, (row + 1) * SPRITE)
    return atlas.crop(box).resize((side, side), Image.Resampling.LANCZOS)


@lru_cache(maxsize=64)
def _glyph(letter: str) -> Image.Image:
    """The letter's coverage, one channel."""
    left = LETTERS.index(letter) * GLYPH[0]
    return _atlas("letters.png").crop((left, 0, left + GLYPH[0], GLYPH[1]))


@lru_cache(maxsize=2)
def _atlas(name: str) -> Image.Image:
    image = Image.open(SPRITES / name)
    image.load()
    return image


def _shade(color: str, rng: np.random.RandomState) -> tuple[int, int, int]:
    """A colour with a little variation."""
    red, green, blue = (int(min(255, max(0, base + rng.randint(-10, 11)))) for base in COLORS[color])
    return (red, green, blue)


def _draw_item(image: Image.Image, item: Item, rng: np.random.RandomState) -> None:
    left, top, right, bottom = item.box
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=5, fill=_shade(item.color, rng))
    sprite = _sprite(item.kind, right - left - 2 * BORDER)
    image.paste(sprite, (left + BORDER, top + BORDER), sprite)


def _draw_sign(image: Image.Image, sign: Sign, rng: np.random.RandomState) -> None:
    left, top, right, bottom = sign.box
    shade = _shade(sign.color, rng)
    ink = (0, 0, 0) if sum(w * c for w, c in zip((0.3, 0.59, 0.11), shade, strict=True)) > 120 else (255, 255, 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, right - 1, bottom - 1), fill=shade, outline=(30, 30, 30), width=1)
    for index, letter in enumerate(sign.code):
        image.paste(ink, (left + LETTER * index + 1, top + (BOARD - LETTER) // 2), _glyph(letter))
