"""All questions that can be asked about a scene, task by task, and one drawn among them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunekit.data.scene import Box, Item, Scene
from prunekit.data.words import (
    COLORS,
    CORNERS,
    DIRECTIONS,
    FILLERS,
    GROUP_OF,
    GROUPS,
    KINDS,
    NUMBERS,
    OPTIONS,
    ORDINALS,
    WHICH,
)

# Phrasings that end with the key word come first and are drawn more often (see `_phrase`).
PHRASES: dict[str, tuple[str, ...]] = {
    "attribute": (
        "what color is under the {kind}",
        "what is the color of the tile with the {kind}",
        "what color is the {kind} tile",
    ),
    "existence": ("is there a {kind}", "can you see a {kind}", "is a {kind} in the picture"),
    "existence_on": (
        "is there a {kind} on {color}",
        "can you see a {kind} on {color}",
        "is the {kind} on a {color} tile",
    ),
    "relation": ("what is {way} the {kind}", "which thing is {way} the {kind}", "{way} the {kind} is what"),
    "position": ("what is at {place}", "which thing is at {place}", "at {place} is what"),
    "text": ("what is on the sign that is {color}", "read the sign in {color}", "what is on the {color} sign"),
    "choice": (
        "{options} which is on {color}",
        "{options} which of these is on the tile in {color}",
        "{options} on the {color} tile is which of these",
    ),
    "choice_at": (
        "{options} which is at {place}",
        "{options} which of these is at {place}",
        "{options} at {place} is which of these",
    ),
    "count": ("how many tiles with {key}", "count the tiles with {key}", "how many {key} tiles are there"),
    "comparison": (
        "do the {kind} and the {other} stand on the same color",
        "are the {kind} and the {other} on one color",
        "is the color under the {kind} the same as under the {other}",
    ),
}
WAYS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question and its answer; ``key`` is what a split balances within a task."""

    task: str
    text: str
    answers: tuple[str, ...]
    regions: tuple[Box, ...]
    key: str
    choices: tuple[str, ...] = ()


def _phrase(rng: random.Random, form: str, **words: str) -> str:
    """One of a form's phrasings, those that end with the key word more often."""
    first, second, third = PHRASES[form]
    text = rng.choice((first, first, second, third)).format(**words)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _single(scene: Scene) -> list[Item]:
    """Objects whose kind stands only once in the scene."""
    return [item for item in scene.items if len(scene.by_kind[item.kind]) == 1]


def _attribute(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for item in _single(scene):
        text = _phrase(rng, "attribute", kind=item.kind)
        yield Question("attribute", text, (item.color,), (item.box,), item.color)


def _existence(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    absent_seen = set()
    for item in _single(scene):
        text = _phrase(rng, "existence", kind=item.kind)
        yield Question("existence", text, ("yes",), (item.box,), "plain yes")
        text = _phrase(rng, "existence_on", kind=item.kind, color=item.color)
        yield Question("existence", text, ("yes",), (item.box,), "on yes")
        others = [other.color for other in scene.items if other.color != item.color]
        if others:
            text = _phrase(rng, "existence_on", kind=item.kind, color=rng.choice(others))
            yield Question("existence", text, ("no",), (item.box,), "on no")
        # a kind that is not there but looks like one that is
        absent = [kind for kind in GROUPS[GROUP_OF[item.kind]] if kind not in scene.by_kind and kind in kinds]
        if absent:
            kind = rng.choice(absent)
            if kind not in absent_seen:
                absent_seen.add(kind)
                text = _phrase(rng, "existence", kind=kind)
                yield Question("existence", text, ("no",), (item.box,), "plain no")


def _relation(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for anchor in _single(scene):
        for way, (down, right) in DIRECTIONS.items():
            target = scene.at.get((anchor.cell[0] + down, anchor.cell[1] + right))
            if target is not None:
                text = _phrase(rng, "relation", way=WAYS[way], kind=anchor.kind)
                yield Question("relation", text, (target.kind,), (anchor.box, target.box), target.kind)


def _place(rng: random.Random, cell: tuple[int, int]) -> str:
    """A cell in words."""
    corners = [name for name, corner in CORNERS.items() if corner == cell]
    if corners and rng.random() < 0.7:
        return corners[0]
    return f"row {ORDINALS[cell[0]]} column {ORDINALS[cell[1]]}"


def _position(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for item in scene.items:
        text = _phrase(rng, "position", place=_place(rng, item.cell))
        yield Question("position", text, (item.kind,), (item.box,), item.kind)


def _text(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for sign in scene.signs:
        text = _phrase(rng, "text", color=sign.color)
        yield Question("text", text, (sign.code,), (sign.box,), str(len(sign.code)))


def _choice(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for item in scene.items:
        others = sorted({other.kind for other in scene.items} - {item.kind})
        if len(others) < len(OPTIONS) - 1:
            continue
        forms = [("choice_at", {"place": _place(rng, item.cell)})]
        if len(scene.by_color[item.color]) == 1:
            forms.append(("choice", {"color": item.color}))
        for form, words in forms:
            answer = rng.randrange(len(OPTIONS))
            choices = rng.sample(others, len(OPTIONS) - 1)
            choices.insert(answer, item.kind)
            options = " ".join(f"{letter}) {kind}" for letter, kind in zip(OPTIONS, choices, strict=True))
            text = _phrase(rng, form, options=options, **words)
            yield Question("choice", text, (OPTIONS[answer],), (item.box,), OPTIONS[answer], tuple(choices))


def _count(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for form, groups in (("kind", scene.by_kind), ("color", scene.by_color)):
        for key, items in groups.items():
            if len(items) <= len(NUMBERS):
                number = len(items)
                text = _phrase(rng, "count", key=key)
                boxes = tuple(item.box for item in items)
                yield Question("count", text, (NUMBERS[number - 1], str(number)), boxes, f"{form} {number}")


def _comparison(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> Iterable[Question]:
    for item, other in itertools.permutations(_single(scene), 2):
        answer = "yes" if item.color == other.color else "no"
        text = _phrase(rng, "comparison", kind=item.kind, other=other.kind)
        yield Question("comparison", text, (answer,), (item.box, other.box), answer)


ASKERS: dict[str, Callable[[Scene, random.Random, tuple[str, ...]], Iterable[Question]]] = {
    "attribute": _attribute,
    "existence": _existence,
    "relation": _relation,
    "position": _position,
    "text": _text,
    "choice": _choice,
    "count": _count,
    "comparison": _comparison,  # in a split of its own
}


def questions(scene: Scene, task: str, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> list[Question]:
    """Every question of a task about a scene, each in one phrasing; ``kinds`` bounds what negatives may name."""
    return list(ASKERS[task](scene, rng, kinds))


def draw_question(scene: Scene, task: str, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> Question | None:
    """One question of a task, its key drawn about uniformly; None if the scene has none."""
    by_key: dict[str, list[Question]] = {}
    for question in questions(scene, task, rng, kinds):
        by_key.setdefault(question.key, []).append(question)
    if not by_key:
        return None
    keys = sorted(by_key)
    weights = [int(key[-1]) if task == "count" else 1 for key in keys]  # higher counts stand in fewer scenes
    return rng.choice(by_key[rng.choices(keys, weights)[0]])


def vocabulary() -> list[str]:
    """Every word that questions and answers use, sorted; codes are spelt in letters."""
    words = {word for phrases in PHRASES.values() for phrase in phrases for word in phrase.split() if "{" not in word}
    words |= set(KINDS) | set(COLORS) | set(NUMBERS) | set(ORDINALS) | {"row", "column", "yes", "no", "an", "where"}
    words |= {word for name in (*CORNERS, *WAYS.values(), *FILLERS, *WHICH) for word in name.split()}
    return sorted(word for word in words if len(word) > 1)
