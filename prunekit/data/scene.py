"""What stands in a scene: drawn from a seed, without pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from prunekit.data.words import COLORS, KINDS, LETTERS

VERSION = "4"  # of the data: a change of scenes, questions or pixels raises it
SIZE = 192  # pixels, both sides
CELLS = 4  # rows and columns
CELL = SIZE // CELLS  # pixels
LETTER = 16  # pixels, width and height of a letter on a sign
BOARD = 22  # pixels, height of a sign
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Style:
    """What a split draws its scenes from; the held-out split has its own grounds, layouts and sizes."""

    grounds: tuple[str, ...]
    sizes: tuple[int, ...]  # sides of an object's tile in pixels
    layouts: tuple[str, ...]  # how the occupied cells are drawn
    objects: tuple[int, int] = (6, 10)


TRAINED = Style(("linear", "radial", "blobs"), (18, 19, 20, 21, 22), ("scattered",))
HELD_OUT = Style(("stripes", "checker"), (17, 23, 31, 32), ("rows", "columns", "ring"))

STYLES: dict[str, Style] = {"heldout": HELD_OUT}  # all other splits are TRAINED


@dataclass(frozen=True)
class Item:
    """An object on its coloured tile."""

    kind: str
    color: str
    cell: tuple[int, int]  # row, column
    box: Box  # of the tile, in pixels


@dataclass(frozen=True)
class Sign:
    """A board with a code of one to three letters."""

    code: str  # lower case; drawn in capitals
    color: str
    cell: tuple[int, int]
    box: Box


@dataclass(frozen=True)
class Scene:
    seed: str  # also seeds what the renderer draws at random
    ground: str
    items: tuple[Item, ...]
    signs: tuple[Sign, ...]

    @cached_property
    def at(self) -> dict[tuple[int, int], Item]:
        """The object in each occupied cell."""
        return {item.cell: item for item in self.items}

    @cached_property
    def by_kind(self) -> dict[str, list[Item]]:
        """Objects of each kind."""
        found: dict[str, list[Item]] = {}
        for item in self.items:
            found.setdefault(item.kind, []).append(item)
        return found

    @cached_property
    def by_color(self) -> dict[str, list[Item]]:
        """Objects on each colour of tile."""
        found: dict[str, list[Item]] = {}
        for item in self.items:
            found.setdefault(item.color, []).append(item)
        return found


def draw_scene(seed: str, style: Style = TRAINED, kinds: tuple[str, ...] = KINDS) -> Scene:
    """Draws a scene from its seed; the same seed gives the same scene on every machine."""
    rng = random.Random(seed)
    count = min(rng.randint(*style.objects), 3 * len(kinds) // 4)  # some kinds stay absent
    signs = rng.randint(1, 2)
    cells = _cells(rng, rng.choice(style.layouts), count + signs)
    rng.shuffle(cells)
    drawn = _kinds(rng, count, kinds)
    items = []
    for kind, cell in zip(drawn, cells[signs:], strict=True):
        items.append(Item(kind, rng.choice(list(COLORS)), cell, _place(rng, cell, *[rng.choice(style.sizes)] * 2)))
    boards = []
    for color, cell in zip(rng.sample(list(COLORS), signs), cells[:signs], strict=True):
        code = "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 1, 2, 2, 3))))
        boards.append(Sign(code, color, cell, _board(rng, cell, len(code))))
    return Scene(seed, rng.choice(style.grounds), tuple(items), tuple(boards))


def _kinds(rng: random.Random, count: int, kinds: tuple[str, ...]) -> list[str]:
    """Kinds of the objects: one of them two or three times in most scenes, the others once."""
    distinct = rng.sample(kinds, count)
    repeats = rng.choice((0, 1, 1, 2, 2))
    return (distinct[: count - repeats] + distinct[:1] * repeats)[:count]


def _cells(rng: random.Random, layout: str, count: int) -> list[tuple[int, int]]:
    """Draws the occupied cells: a layout's own cells first, then any others."""
    every = [(row, column) for row in range(CELLS) for column in range(CELLS)]
    lines = rng.sample(range(CELLS), 2)
    first = {
        "scattered": every,
        "rows": [cell for cell in every if cell[0] in lines],
        "columns": [cell for cell in every if cell[1] in lines],
        "ring": [cell for cell in every if 0 in cell or CELLS - 1 in cell],
    }[layout]
    rest = [cell for cell in every if cell not in first]
    rng.shuffle(first)
    rng.shuffle(rest)
    return (first + rest)[:count]


def _place(rng: random.Random, cell: tuple[int, int], width: int, height: int) -> Box:
    """A box somewhere within its cell."""
    left = cell[1] * CELL + rng.randint(0, CELL - width)
    top = cell[0] * CELL + rng.randint(0, CELL - height)
    return (left, top, left + width, top + height)


def _board(rng: random.Random, cell: tuple[int, int], letters: int) -> Box:
    """A sign within its cell. Letters stand on a lattice of their own size, give or take two pixels.

    So a letter mostly falls into one patch of 16 pixels: what codes ask of a model is to look again for each letter,
    not to join halves of letters.
    """
    room = CELL // LETTER - letters
    column = rng.randint(0, room)
    shift = rng.randint(-2 if column > 0 else 0, 2 if column < room else 0)
    left = cell[1] * CELL + column * LETTER + shift
    top = cell[0] * CELL + LETTER - (BOARD - LETTER) // 2 + rng.randint(-2, 2)
    return (left, top, left + letters * LETTER, top + BOARD)


def scene_of(image_id: str) -> Scene:
    """The scene of an image id such as "test-00012"; its split decides the style."""
    split = image_id.split("-")[0]
    return draw_scene(f"mini/{VERSION}/{image_id}", STYLES.get(split, TRAINED))
