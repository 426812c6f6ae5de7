"""Accuracies, intervals and tests against plain counting, whole enumerations and scipy."""

from __future__ import annotations

import itertools
import random
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from prunekit.results import statistics
from prunekit.results.statistics import (
    accuracies,
    bootstrap,
    holm,
    interval,
    intervals,
    over_seeds,
    p_value,
    seed_interval,
)


def examples(images, tasks=("a", "b")):
    return [SimpleNamespace(image_id=str(i), task=t, answers=("Cat",)) for i in range(images) for t in tasks]


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


def test_questions_about_one_image_have_no_interval():
    """Alone they say nothing of other images; neither does a task that is asked of one image, among others."""
    one, two = examples(1), examples(2)[:3]
    assert intervals(one, [1.0, 0.0]) == {"mean": None, "a": None, "b": None}
    both = intervals(two, [0.0, 1.0, 1.0])
    assert both["a"] == [0.0, 1.0] and both["b"] is None and both["mean"] is not None
    assert set(intervals([two[0], two[1].__class__(image_id="9", task="b")], [0.0, 1.0]).values()) == {None}


def test_the_same_seed_gives_the_same_interval():
    many = examples(30)
    values = [float(i % 3 == 0) for i in range(len(many))]
    assert intervals(many, values) == intervals(many, values)


def uneven(seed, images=5):
    """Images with different numbers of questions of two tasks, and the answers of two runs, as tables."""
    rng = random.Random(seed)
    asked = [
        SimpleNamespace(image_id=f"i{i}", task=t)
        for i in range(images)
        for t in ("a", "b")
        for _ in range(rng.randint(1, 3))
    ]
    return asked, np.array([[float(rng.random() < 0.6) for _ in asked] for _ in range(2)])


def mean_over_tasks(asked, values, drawn):
    """With images as often as they are drawn: a plain loop."""
    found = {}
    for image in drawn:
        for example, value in zip(asked, values, strict=True):
            if example.image_id == image:
                found.setdefault(example.task, []).append(value)
    return mean(mean(v) for v in found.values())


@pytest.mark.parametrize("seed", range(3))
def test_paired_bootstrap_is_that_of_all_possible_draws(seed):
    """Five images have 3125 draws: the shares below each point of their distribution are those of the resampling."""
    asked, values = uneven(seed)
    names = sorted({e.image_id for e in asked})
    every = [
        mean_over_tasks(asked, values[0], drawn) - mean_over_tasks(asked, values[1], drawn)
        for drawn in itertools.product(names, repeat=5)
    ]
    draws = bootstrap(asked, values, seed=seed, resamples=20_000)[:, :, 0]
    found = draws[:, 0] - draws[:, 1]
    for point in np.quantile(every, [0.03, 0.2, 0.5, 0.8, 0.97]):
        assert (found <= point + 1e-9).mean() == pytest.approx(np.mean(np.array(every) <= point + 1e-9), abs=0.015)
    below, above = np.mean(np.array(every) <= 1e-12), np.mean(np.array(every) >= -1e-12)
    assert p_value(np.where(np.abs(found) < 1e-12, 0, found)) == pytest.approx(min(1, 2 * min(below, above)), abs=0.02)


def test_blocks_of_draws_do_not_change_them(monkeypatch):
    asked, values = uneven(7)
    whole = bootstrap(asked, values, resamples=100)
    monkeypatch.setattr(statistics, "BLOCK", 35)
    assert np.array_equal(whole, bootstrap(asked, values, resamples=100))


def test_one_task_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    asked, change = examples(150, ("a",)), rng.normal(0.1, 1, 150)
    theirs = stats.bootstrap((change,), np.mean, method="percentile", n_resamples=9999, rng=rng).confidence_interval
    low, high = intervals(asked, change.tolist())["a"]
    assert low == pytest.approx(theirs.low, abs=0.02) and high == pytest.approx(theirs.high, abs=0.02)


def test_p_value_is_near_the_t_tests_and_agrees_with_the_interval():
    asked = examples(200, ("a",))
    for seed in range(12):
        change = np.random.default_rng(seed).normal(0.12, 1, 200)
        draws = bootstrap(asked, change[None], seed, 10_000)[:, 0, 0]
        assert p_value(draws) == pytest.approx(stats.ttest_1samp(change, 0).pvalue, abs=0.02)
        low, high = interval(draws)
        assert (p_value(draws) < 0.049) <= (low > 0 or high < 0) <= (p_value(draws) < 0.051)


def test_p_values_of_runs_that_do_not_differ_and_that_always_do():
    assert p_value(np.zeros(999)) == 1.0
    assert p_value(np.full(999, 0.1)) == pytest.approx(0.002)


@pytest.mark.parametrize("seed", range(20))
def test_holm_by_the_definition(seed):
    """Reject, smallest first, while p ≤ level / (how many are left): the adjusted p is the least level that rejects."""
    rng = random.Random(seed)
    p_values = [round(rng.random() ** 3, 3) for _ in range(rng.randint(1, 8))]
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        rejected, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
        while left and p_values[left[0]] <= level / len(left):
            rejected.add(left.pop(0))
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_seeds_widen_an_interval_as_their_variance_says():
    """Four seeds with known spread and images without any: the variance is that of a mean of four drawn seeds."""
    per_seed = np.array([0.2, 0.4, 0.5, 0.9])
    draws = over_seeds(np.tile(per_seed, (40_000, 1)))
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert draws.var() == pytest.approx(per_seed.var() / 4, rel=0.05)


def test_interval_over_seeds_is_students():
    values = [0.71, 0.78, 0.74, 0.69]
    theirs = stats.t.interval(0.95, 3, loc=mean(values), scale=stats.sem(values))
    assert seed_interval(values) == pytest.approx(theirs)
    assert seed_interval([0.7]) is None
