"""Questions for training only: the single steps of which the tasks' questions are made.

Naming a place, stepping from one place to the next, finding a word among options: each is learned sooner when it is
asked for alone. No split holds any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from prunekit.data.questions import WAYS, Question
from prunekit.data.scene import Scene
from prunekit.data.words import DIRECTIONS, NUMBERS, OPTIONS
from tools.embedded.processor import CELL_NAMES

LESSONS = ("where", "on", "beside", "option", "letter")
SIDE = 4  # cells in a row


def lessons(scene: Scene, lesson: str, rng: random.Random) -> list[Question]:
    """Every question of a lesson about a scene."""
    ask = {"where": _where, "on": _on, "beside": _beside, "option": _option, "letter": _letter}[lesson]
    return [Question(lesson, text, (answer,), (), answer) for text, answer in ask(scene, rng)]


def _place(cell: tuple[int, int]) -> str:
    return CELL_NAMES[cell[0] * SIDE + cell[1]]


def _where(scene: Scene, rng: random.Random) -> Iterable[tuple[str, str]]:
    for item in scene.items:
        if len(scene.by_kind[item.kind]) == 1:
            yield f"where is the {item.kind}", _place(item.cell)


def _on(scene: Scene, rng: random.Random) -> Iterable[tuple[str, str]]:
    for item in scene.items:
        if len(scene.by_color[item.color]) == 1:
            yield f"which thing is on {item.color}", item.kind


def _beside(scene: Scene, rng: random.Random) -> Iterable[tuple[str, str]]:
    for item in scene.items:
        for way, (down, right) in DIRECTIONS.items():
            cell = (item.cell[0] - down, item.cell[1] - right)
            if 0 <= cell[0] < SIDE and 0 <= cell[1] < SIDE:
                yield f"what is {WAYS[way]} {_place(cell)}", item.kind


def _letter(scene: Scene, rng: random.Random) -> Iterable[tuple[str, str]]:
    for sign in scene.signs:
        for number, letter in zip(NUMBERS, sign.code, strict=False):
            yield f"what is {number} on the {sign.color} sign", letter


def _option(scene: Scene, rng: random.Random) -> Iterable[tuple[str, str]]:
    kinds = sorted(scene.by_kind)
    for _ in range(4):
        if len(kinds) >= len(OPTIONS):
            chosen = rng.sample(kinds, len(OPTIONS))
            answer = rng.randrange(len(OPTIONS))
            options = " ".join(f"{letter}) {kind}" for letter, kind in zip(OPTIONS, chosen, strict=True))
            yield f"{options} which is the {chosen[answer]}", OPTIONS[answer]
