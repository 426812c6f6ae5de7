"""Accuracies and intervals against plain counting."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from prunekit.evaluation.statistics import accuracies, intervals, is_correct


def examples(images, tasks=("a", "b")):
    return [SimpleNamespace(image_id=str(i), task=t, answers=("Cat",)) for i in range(images) for t in tasks]


def test_answers_match_after_strip_and_lower():
    one = SimpleNamespace(answers=("Cat", "kitten"))
    assert is_correct(one, "  cat\n") and is_correct(one, "Kitten") and not is_correct(one, "cats")


def test_mean_is_over_tasks():
    found = [SimpleNamespace(task="a")] * 3 + [SimpleNamespace(task="b")]
    assert accuracies(found, [1, 1, 0, 0]) == {"mean": pytest.approx(1 / 3), "a": pytest.approx(2 / 3), "b": 0.0}


def test_interval_of_a_proportion_is_near_the_normal_one():
    rng = random.Random(0)
    many = examples(400, ("a",))
    values = [float(rng.random() < 0.7) for _ in many]
    low, high = intervals(many, values)["mean"]
    p = sum(values) / len(values)
    half = 1.96 * (p * (1 - p) / len(values)) ** 0.5
    assert low == pytest.approx(p - half, abs=0.01) and high == pytest.approx(p + half, abs=0.01)


def test_questions_about_one_image_are_resampled_together():
    """Answers that agree within an image tell less: the interval must be that of the images, not of the questions."""
    rng = random.Random(1)
    many = [SimpleNamespace(image_id=str(i), task="a") for i in range(100) for _ in range(8)]
    per_image = [float(rng.random() < 0.5) for _ in range(100)]
    values = [per_image[int(e.image_id)] for e in many]
    low, high = intervals(many, values)["a"]
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_the_same_seed_gives_the_same_interval():
    many = examples(30)
    values = [float(i % 3 == 0) for i in range(len(many))]
    assert intervals(many, values) == intervals(many, values)
