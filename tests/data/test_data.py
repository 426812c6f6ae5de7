"""The embedded data: the same on every run, balanced, not guessable from the question, with the right regions."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from prunekit.data import SPLITS, Example, load
from prunekit.data.extra import EXTRA
from prunekit.data.questions import draw_question, questions, vocabulary
from prunekit.data.render import render
from prunekit.data.scene import CELL, HELD_OUT, SIZE, TRAINED, scene_of
from prunekit.data.words import COLORS, DIRECTIONS, KINDS, LETTERS, NUMBERS, TASKS, WHICH

CHANCE = {
    "attribute": 1 / 8,
    "existence": 1 / 2,
    "relation": 1 / 48,
    "position": 1 / 48,
    "text": 1 / 48,
    "choice": 1 / 4,
    "count": 1 / 3,
}


def digest(example: Example) -> str:
    return hashlib.sha256(np.asarray(example.image()).tobytes()).hexdigest()


def test_test_split_is_large_and_balanced_over_tasks() -> None:
    for split in ("validation", "test", "heldout"):
        examples = load(split)
        assert len(examples) >= 600
        assert len({e.image_id for e in examples}) >= 150
        assert len({e.id for e in examples}) == len(examples)
        assert set(Counter(e.task for e in examples).values()) == {len(examples) // len(TASKS)}
        assert all(e.id.startswith(e.image_id) and e.image_id.startswith(split) for e in examples)


@pytest.mark.parametrize("limit", [1, 7, 20, 60, 200])
def test_any_prefix_is_balanced(limit: int) -> None:
    examples = load("test", limit)
    counts = Counter(e.task for e in examples)
    assert len(examples) == limit and examples == load("test")[:limit]
    assert max(counts.values()) - min(counts.get(task, 0) for task in TASKS) <= 1


def test_the_same_in_another_process() -> None:
    code = (
        "import hashlib, sys; from prunekit.data import load; e = load('test');"
        "assert not {'hydra', 'wandb'} & set(sys.modules);"
        "print(hashlib.sha256(repr(e).encode() + e[9].image().tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    examples = load("test")
    assert other == hashlib.sha256(repr(examples).encode() + examples[9].image().tobytes()).hexdigest()


def test_splits_share_no_scene() -> None:
    scenes = {split: {repr((s.items, s.signs)) for s in map(scene_of, _images(split))} for split in SPLITS}
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not scenes[first] & scenes[second]
    pictures = [digest(e) for split in SPLITS for e in load(split)[:80:4]]
    assert len(set(pictures)) == len(pictures)


def _images(split: str) -> list[str]:
    return sorted({e.image_id for e in load(split)})


def test_held_out_split_holds_out_grounds_layouts_and_sizes() -> None:
    assert not set(TRAINED.grounds) & set(HELD_OUT.grounds)
    assert not set(TRAINED.sizes) & set(HELD_OUT.sizes)
    assert not set(TRAINED.layouts) & set(HELD_OUT.layouts)
    for image_id in _images("heldout")[:40]:
        scene = scene_of(image_id)
        assert scene.ground in HELD_OUT.grounds
        assert all(item.box[2] - item.box[0] in HELD_OUT.sizes for item in scene.items)


@pytest.mark.parametrize("split", ["validation", "test", "heldout"])
def test_answers_are_balanced(split: str) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in load(split):
        answers[example.task][example.answers[0]] += 1
    assert set(answers["existence"].values()) == {48}
    assert set(answers["choice"].values()) == {24}
    assert set(answers["count"]) == set(NUMBERS) and max(answers["count"].values()) <= 36
    assert set(answers["attribute"]) == set(COLORS) and max(answers["attribute"].values()) <= 14
    for task in ("relation", "position"):
        assert len(answers[task]) >= 44 and max(answers[task].values()) <= 4
    assert {len(answer) for answer in answers["text"]} == {1, 2, 3}
    assert max(answers["text"].values()) <= 10


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_no_answer_is_guessable_from_the_question(split: str) -> None:
    """Neither the most frequent answer nor naive Bayes over words and their places beats chance by much."""
    train = load("train")
    for task in TASKS:
        asked = [e for e in load(split) if e.task == task]
        guess = naive_bayes([e for e in train if e.task == task])
        right = sum(guess(e.question) in e.answers for e in asked) / len(asked)
        assert right <= CHANCE[task] + 0.13, (task, right)


def naive_bayes(train: list[Example]) -> Callable[[str], str]:
    prior = Counter(e.answers[0] for e in train)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        seen[example.answers[0]].update(features(example.question))

    def guess(question: str) -> str:
        def score(answer: str) -> float:
            total = prior[answer]
            return math.log(total) + sum(math.log((seen[answer][w] + 0.5) / (total + 1)) for w in features(question))

        return max(sorted(prior), key=score)

    return guess


def features(question: str) -> list[str]:
    words = question.split()
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def test_answers_follow_from_the_scene() -> None:
    """Answers and regions of every task, computed anew from what stands in the scene."""
    for example in load("test"):
        scene = scene_of(example.image_id)
        words, answer = example.question.split(), example.answers[0]
        named = [item for item in scene.items if item.kind in words]
        boxes = {item.box: item for item in scene.items}
        for left, top, right, bottom in example.regions:
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            assert left // CELL == (right - 1) // CELL and top // CELL == (bottom - 1) // CELL
        if example.task == "attribute":
            assert [item.color for item in named] == [answer] and example.regions == (named[0].box,)
        elif example.task == "relation":
            anchor, target = (boxes[box] for box in example.regions)
            way = next(way for way in DIRECTIONS if way in words)
            step = (target.cell[0] - anchor.cell[0], target.cell[1] - anchor.cell[1])
            assert named == [anchor] and target.kind == answer and step == DIRECTIONS[way]
        elif example.task == "text":
            (sign,) = [sign for sign in scene.signs if sign.color in words]
            assert sign.code == answer and example.regions == (sign.box,)
        elif example.task == "choice":
            assert example.choices["abcd".index(answer)] == boxes[example.regions[0]].kind
            assert set(example.choices) <= set(scene.by_kind) and len(set(example.choices)) == 4
        elif example.task == "position":
            assert boxes[example.regions[0]].kind == answer
        elif example.task == "existence":
            colors = [word for word in words if word in COLORS]
            there = any(not colors or item.color == colors[0] for item in named)
            assert answer == ("yes" if there else "no") and len(example.regions) == 1
        else:
            counted = [item for item in scene.items if item.kind in words or item.color in words]
            assert NUMBERS[len(counted) - 1] == answer and {item.box for item in counted} == set(example.regions)


def test_regions_show_the_answer() -> None:
    """The colour asked for fills most of the region's border in the picture."""
    for example in [e for e in load("test") if e.task == "attribute"][:40]:
        left, top, right, bottom = example.regions[0]
        pixels = np.asarray(example.image(), dtype=float)[top:bottom, left:right]
        edge = np.concatenate([pixels[1, 6:-6], pixels[-2, 6:-6]]).mean(axis=0)
        nearest = min(COLORS, key=lambda name: float(np.abs(edge - np.array(COLORS[name])).sum()))
        assert nearest == example.answers[0]


def test_every_word_is_in_the_vocabulary() -> None:
    known = {*vocabulary(), "a", *(f"{letter})" for letter in "abcd")}
    for split in SPLITS:
        for example in load(split):
            assert set(example.question.split()) <= known
            assert set(example.answers[0].split()) <= known or set(example.answers[0]) <= set(LETTERS)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="Unknown split 'tset'"):
        load("tset")
    with pytest.raises(ValueError, match="limit"):
        load("test", 0)


def test_speed_and_images() -> None:
    start = time.perf_counter()
    examples = load("validation")
    pictures = [example.image() for example in examples[:40]]
    assert time.perf_counter() - start < 20
    assert all(picture.size == (SIZE, SIZE) and picture.mode == "RGB" for picture in pictures)
    pictures[0].paste((0, 0, 0), (0, 0, SIZE, SIZE))  # a caller may draw on its copy
    assert (
        digest(examples[0]) == hashlib.sha256(np.asarray(render(scene_of(examples[0].image_id))).tobytes()).hexdigest()
    )


def test_drawn_questions_stay_within_the_given_kinds() -> None:
    rng = random.Random(0)
    for image_id in _images("train")[:50]:
        scene = scene_of(image_id)
        for task in TASKS:
            drawn = draw_question(scene, task, rng, KINDS)
            assert drawn is None or drawn.task == task
            assert all(question.answers and question.text for question in questions(scene, task, rng))


@pytest.mark.parametrize("split", EXTRA)
def test_extra_splits(split: str) -> None:
    examples = load(split)
    assert len(examples) == 336 and len({e.id for e in examples}) == 336
    assert examples == load(split) and load(split, 5) == examples[:5]
    tasks = {e.task for e in examples}
    own = {"comparison": {"comparison"}, "turns": {f"turn {n}" for n in range(1, 5)}}
    assert tasks == own.get(split, set(TASKS))
    for example in examples[:60]:
        assert example.image_ids[example.place] == example.image_id and len(example.images()) == len(example.image_ids)
        scene = scene_of(example.image_id)
        text = example.question
        if split == "pairs":
            text = text.removesuffix(f" {WHICH[example.place]}")
            assert len(example.image_ids) == 2
        if split == "long":
            assert len(text.split()) > 25
        if split == "dialogue":
            ((first, answer),) = example.history
            assert any(q.answers[0] == answer for q in questions(scene, "attribute", random.Random(0))) or first == text
        if split == "turns":
            before = [e for e in examples if e.image_id == example.image_id and e.id < example.id]
            assert example.history == tuple((e.question, e.answers[0]) for e in before)
            assert example.task == f"turn {len(before) + 1}"
        if split == "comparison":
            colors = {item.color for item in scene.items if item.box in example.regions}
            assert example.answers == (("yes",) if len(colors) == 1 else ("no",))
    if split == "comparison":
        assert 0.4 < sum(e.answers == ("yes",) for e in examples) / 336 < 0.6
