"""The splits of the embedded data: lists of questions, balanced over tasks and answers."""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache

from prunekit.data.example import Example
from prunekit.data.extra import EXTRA, extra_examples
from prunekit.data.questions import Question, questions
from prunekit.data.scene import VERSION, Scene, scene_of
from prunekit.data.words import TASKS

SPLITS = ("train", "validation", "test", "heldout")
ALL_SPLITS = (*SPLITS, *EXTRA)
IMAGES = {"train": 2000, "validation": 168, "test": 168, "heldout": 168}
PER_IMAGE = 4  # questions about an image; images x 4 is a multiple of the seven tasks


def load(split: str = "test", limit: int | None = None) -> list[Example]:
    """The examples of a split in a fixed order; the first ``limit`` of them hold about as many of each task.

    Images are rendered when asked for. Raises ValueError for an unknown split or a limit below one.
    """
    if split not in ALL_SPLITS:
        raise ValueError(f"Unknown split {split!r}. Available: {', '.join(ALL_SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    examples = extra_examples(split) if split in EXTRA else _examples(split)
    return list(examples[:limit])


@lru_cache(maxsize=len(SPLITS))
def _examples(split: str) -> tuple[Example, ...]:
    rng = random.Random(f"questions/{VERSION}/{split}")
    used: Counter[tuple[str, str]] = Counter()
    examples: list[Example] = []
    index = images = 0
    while images < IMAGES[split]:
        image_id = f"{split}-{index:05d}"
        index += 1
        found = _ask(scene_of(image_id), len(examples), rng)
        if found is None:  # a scene that lacks a question of some task is left out
            continue
        images += 1
        for number, candidates in enumerate(found):
            question = _least_used(candidates, used, rng)
            used[question.task, question.key] += 1
            used[question.task, question.text] += 1
            examples.append(_example(f"{image_id}-{number}", image_id, question))
    return tuple(examples)


def _ask(scene: Scene, start: int, rng: random.Random) -> list[list[Question]] | None:
    """The candidates of the next PER_IMAGE tasks, or None if the scene cannot serve one of them."""
    tasks = [TASKS[(start + number) % len(TASKS)] for number in range(PER_IMAGE)]
    found = [questions(scene, task, rng) for task in tasks]
    return found if all(found) else None


def _least_used(candidates: list[Question], used: Counter[tuple[str, str]], rng: random.Random) -> Question:
    """The candidate whose answer is rarest so far, then whose wording is, then any."""
    return min(candidates, key=lambda q: (used[q.task, q.key], used[q.task, q.text], rng.random()))


def _example(name: str, image_id: str, question: Question) -> Example:
    return Example(
        id=name,
        image_id=image_id,
        task=question.task,
        question=question.text,
        answers=question.answers,
        regions=question.regions,
        choices=question.choices,
    )
