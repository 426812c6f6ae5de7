"""Extra splits beside the main ones: what real use adds to a question about an image.

`comparison` asks about two objects at once; `long` puts a question behind sentences that say nothing about it;
`dialogue` asks after an earlier question and its answer, and `turns` in turn what its task names, after all before it;
`pairs` shows two images and asks about one of them. All are tests: their scenes are drawn like the test split's, from
seeds of their own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from prunekit.data.example import Example
from prunekit.data.questions import Question, draw_question, questions
from prunekit.data.scene import Scene, scene_of
from prunekit.data.words import FILLERS, TASKS, WHICH

EXTRA = ("comparison", "long", "dialogue", "turns", "pairs")
IMAGES = 84
PER_IMAGE = 4
LONG = 3  # filler sentences of a long instruction


@lru_cache(maxsize=len(EXTRA))
def extra_examples(split: str) -> tuple[Example, ...]:
    """All examples of an extra split: PER_IMAGE about each of IMAGES images, tasks in turn."""
    rng = random.Random(f"extra/{split}")
    examples: list[Example] = []
    scene = 0
    while len(examples) < IMAGES * PER_IMAGE:
        name, first = f"{split}-{scene:05d}", len(examples)
        scene += 1
        asked = [_ask(scene_of(name), split, first + number, rng) for number in range(PER_IMAGE)]
        said = [question for question in asked if question is not None]
        for number, question in enumerate(said if all(asked) else ()):  # a scene that lacks one of them is left out
            examples.append(_example(f"{name}-{number}", name, question, split, rng, said[:number]))
    return tuple(examples)


def _ask(scene: Scene, split: str, number: int, rng: random.Random) -> Question | None:
    """The split's question number ``number``, of the next task; comparisons are by turns of the same and not."""
    if split != "comparison":
        return draw_question(scene, TASKS[number % len(TASKS)], rng)
    wanted = ("yes", "no")[number % 2]
    found = [question for question in questions(scene, "comparison", rng) if question.key == wanted]
    return rng.choice(found) if found else None


def _example(
    name: str, image_id: str, question: Question, split: str, rng: random.Random, before: Sequence[Question]
) -> Example:
    """The example of a question, in its split's form; ``before`` are those asked about the image already."""
    example = Example(
        name, image_id, question.task, question.text, question.answers, question.regions, question.choices
    )
    if split == "long":
        return replace(example, question=lengthen(question.text, rng, LONG))
    if split == "dialogue":
        first = draw_question(scene_of(image_id), "attribute", rng) or question
        return replace(example, history=((first.text, first.answers[0]),))
    if split == "turns":
        history = tuple((earlier.text, earlier.answers[0]) for earlier in before)
        return replace(example, task=f"turn {len(before) + 1}", history=history)
    if split == "pairs":
        place = rng.randrange(len(WHICH))
        others = (f"{image_id}/other",)
        return replace(example, question=f"{question.text} {WHICH[place]}", others=others, place=place)
    return example


def lengthen(text: str, rng: random.Random, fillers: int) -> str:
    """A question behind sentences that say nothing about it."""
    return " ".join([*rng.sample(FILLERS, fillers), text])
