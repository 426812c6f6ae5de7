"""Budgets for groups against loops: exact in total, in proportion, within limits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit
import zoo


def share_out(weights: list[int], total: int, limits: list[int]) -> list[int]:
    """Proportional shares in exact fractions; what a full group cannot take goes to the others; largest remainders."""
    full = {g for g, limit in enumerate(limits) if not limit}
    while True:
        opened = {g: weights[g] for g in range(len(weights)) if g not in full}
        if opened and not any(opened.values()):
            opened = dict.fromkeys(opened, 1)
        left = total - sum(limits[g] for g in full)
        shares = {g: Fraction(left * w, sum(opened.values())) for g, w in opened.items()}
        filled = {g for g, share in shares.items() if share >= limits[g]}
        if not filled:
            break
        full |= filled
    counts = {g: int(share) for g, share in shares.items()} | {g: limits[g] for g in full}
    order = sorted(shares, key=lambda g: (int(shares[g]) - shares[g], g))
    for g in order[: total - sum(counts.values())]:
        counts[g] += 1
    return [counts[g] for g in range(len(weights))]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=9), st.floats(0, 1))
def test_shares_of_a_budget(groups, part):
    weights, limits = [w for w, _ in groups], [limit for _, limit in groups]
    total = round(part * sum(limits))
    shared = prunekit.ops.apportion(torch.tensor([weights]), torch.tensor([total]), torch.tensor([limits]))
    assert int(shared.sum()) == total and all(0 <= n <= m for n, m in zip(shared[0].tolist(), limits, strict=True))
    assert shared[0].tolist() == share_out(weights, total, limits)


def test_samples_do_not_see_each_other():
    g = torch.Generator().manual_seed(0)
    weights, limits = torch.rand(6, 7, generator=g), torch.randint(0, 9, (6, 7), generator=g)
    total = (limits.sum(1) * torch.rand(6, generator=g)).long()
    together = prunekit.ops.apportion(weights, total, limits)
    for b in range(6):
        alone = prunekit.ops.apportion(weights[b : b + 1], total[b : b + 1], limits[b : b + 1])
        assert torch.equal(together[b : b + 1], alone)


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_numbers_sums_and_means(seed):
    g = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(0, 3, (3, 10), generator=g) for _ in range(2))
    among = torch.rand(3, 10, generator=g) < 0.7
    tokens = torch.randn(3, 10, 4, generator=g)
    numbers, groups = prunekit.ops.group_numbers(first, second, among=among)
    means = prunekit.ops.group_means(tokens, numbers, groups) if groups else None
    for b in range(3):
        keys = [(int(first[b, n]), int(second[b, n])) if among[b, n] else None for n in range(10)]
        order = sorted(set(filter(None, keys)))
        assert numbers[b].tolist() == [-1 if key is None else order.index(key) for key in keys]
        for group, key in enumerate(order):
            members = [tokens[b, n] for n in range(10) if keys[n] == key]
            assert means is not None and (means[b, group] - sum(members) / len(members)).abs().max() < 1e-5


@dataclass
class Noise(prunekit.Scorer):
    """Random, the same whatever the model."""

    uses_places = True

    def score(self, view):
        vars(self).update(places=view.places, tokens=view.visual(view.hidden_states), alive=view.alive)
        return torch.rand(view.alive.shape, generator=torch.Generator().manual_seed(3)) + 0.01


def pruned(name: str, variant: str, keep: float = 0.5, **options):
    """The scorer's view and the kept set of one grouped cut."""
    scorer, batch = Noise(), zoo.batch(name, "left", variant=variant)
    selector = prunekit.create("selector", "grouped", **options)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    pruner, model = prunekit.Pruner(scorer, "ahead", schedule, selector, keep_ratio=keep), zoo.build(name)
    with torch.no_grad(), pruner(model) as trace:
        model(**batch.inputs)
    return scorer, trace.cuts[0]


FRAMES = [("qwen2_vl", "video"), ("llava_onevision", "video"), ("video_llava", "video"), ("qwen2_5_vl", "two_images")]


@pytest.mark.parametrize(("name", "variant"), FRAMES)
@pytest.mark.parametrize("budget", ["equal", "size", "mass"])
def test_each_frame_keeps_the_best_of_its_own(name, variant, budget):
    scorer, cut = pruned(name, variant, by="frame", budget=budget)
    places = scorer.places
    for b in range(len(cut.kept)):
        tokens = [n for n in range(cut.kept.shape[1]) if scorer.alive[b, n]]
        group, groups = None, {}
        leading = []
        for n in tokens:
            if int(places.row[b, n]) >= 0:
                group = (int(places.medium[b, n]), int(places.frame[b, n]))
                groups.setdefault(group, []).extend([*leading, n])
                leading = []
            elif group is None:
                leading.append(n)
            else:
                groups[group].append(n)
        keys = sorted(groups)
        scores = cut.scores[b].tolist()
        sizes = [len(groups[key]) for key in keys]
        mass = [round(sum(scores[n] for n in groups[key]) * 10**6) for key in keys]
        weights = {"equal": [1] * len(keys), "size": sizes, "mass": mass}[budget]
        counts = share_out(weights, max(1, round(0.5 * len(tokens))), sizes)
        expected = set()
        for key, count in zip(keys, counts, strict=True):
            expected |= set(sorted(groups[key], key=lambda n: (-scores[n], n))[:count])
        assert {n for n in tokens if cut.kept[b, n]} == expected


def test_windows_of_a_picture():
    scorer, cut = pruned("llava", "plain", by="window", window=2)
    places = scorer.places
    for b in range(3):
        windows = [(int(places.row[b, n]) // 2, int(places.column[b, n]) // 2) for n in range(16)]
        assert all(sum(bool(cut.kept[b, n]) for n in range(16) if windows[n] == w) == 2 for w in set(windows))


@pytest.mark.parametrize(("segments", "threshold"), [(3, None), (None, 0.1), (2, 0.0), (None, None)])
def test_segments_of_a_video(segments, threshold):
    """LLaVA-OneVision: 8 frames of one cell; a break at each of the least alike pairs, and below the threshold."""
    scorer, cut = pruned("llava_onevision", "video", by="segment", segments=segments, threshold=threshold)
    for b in range(3):
        frames = [scorer.tokens[b, n] for n in range(8)]
        alike = [float(torch.cosine_similarity(x, y, dim=0)) for x, y in itertools.pairwise(frames)]
        bar = 0.9 if threshold is None and segments is None else threshold
        least = sorted(range(7), key=lambda t: (alike[t], t))[: (segments or 1) - 1]
        breaks = {t for t in range(7) if (bar is not None and alike[t] < bar) or t in least}
        groups = [[0]]
        for t in range(7):
            groups.append([t + 1]) if t in breaks else groups[-1].append(t + 1)
        groups[-1].append(8)  # the newline behind the video
        counts = share_out([1] * len(groups), round(0.5 * 9), [len(g) for g in groups])
        scores, expected = cut.scores[b].tolist(), set()
        for group, count in zip(groups, counts, strict=True):
            expected |= set(sorted(group, key=lambda n: (-scores[n], n))[:count])
        assert {n for n in range(9) if cut.kept[b, n]} == expected


@pytest.mark.parametrize("segments", [1, 3, 8, 20])
def test_optimal_segments_of_a_video(segments):
    """Against all divisions of LLaVA-OneVision's 8 frames of one cell."""
    scorer, cut = pruned("llava_onevision", "video", by="segment", segments=segments, division="optimal")
    for b in range(3):
        frames, divisions = scorer.tokens[b, :8].double(), []
        for ends in itertools.combinations(range(1, 8), min(segments, 8) - 1):
            runs = list(itertools.pairwise([0, *ends, 8]))
            cost = sum(float((frames[a:z] - frames[a:z].mean(0)).square().sum()) for a, z in runs)
            divisions.append((round(cost, 9), runs))
        groups = [list(range(a, z)) for a, z in min(divisions)[1]]
        groups[-1].append(8)  # the newline behind the video
        counts = share_out([1] * len(groups), round(0.5 * 9), [len(g) for g in groups])
        scores, expected = cut.scores[b].tolist(), set()
        for group, count in zip(groups, counts, strict=True):
            expected |= set(sorted(group, key=lambda n: (-scores[n], n))[:count])
        assert {n for n in range(9) if cut.kept[b, n]} == expected


def test_tiles_of_a_picture():
    """LLaVA-NeXT: a thumbnail of 2 × 2 tokens, then tiles of 2 × 2 joined to one picture, a newline behind each row."""
    scorer, cut = pruned("llava_next", "plain", by="tile")
    places = scorer.places
    for b in range(len(places.row)):
        groups: dict[tuple, list[int]] = {}
        key: tuple = ()
        for n in torch.where(scorer.alive[b])[0].tolist():
            row, column = int(places.row[b, n]), int(places.column[b, n])
            if row >= 0:  # a newline belongs to the tile before it
                key = ("small",) if places.thumbnail[b, n] else (row // 2, column // 2)
            groups.setdefault(key, []).append(n)
        sizes = [len(group) for group in groups.values()]
        counts = share_out([1] * len(sizes), round(0.5 * sum(sizes)), sizes)
        stays = sorted(int(cut.kept[b][group].sum()) for group in groups.values())
        assert stays == sorted(counts)
        for group in groups.values():
            scores = {n: float(cut.scores[b, n]) for n in group}
            count = int(cut.kept[b][group].sum())
            best = sorted(group, key=lambda n: (-scores[n], n))[:count]
            assert {n for n in group if cut.kept[b, n]} == set(best)


def test_another_selector_sees_one_group_at_a_time():
    """Farthest points of each frame by itself."""
    scorer, cut = pruned("qwen2_vl", "video", by="frame", of="maxmin")
    for frame in (0, 1):
        own = torch.where((scorer.places.frame[0] == frame) & scorer.alive[0])[0]
        alone = prunekit.create("selector", "maxmin")

        @dataclass
        class View:
            hidden_states: torch.Tensor
            alive: torch.Tensor

            def visual(self, x):
                return x

        view = View(scorer.tokens[:1, own], torch.ones(1, len(own), dtype=torch.bool))
        picked = alone.select(view, torch.zeros(1, len(own)), torch.tensor([len(own) // 2]))
        assert torch.equal(cut.kept[0, own], picked[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "frames"}, "Did you mean 'frame'"),
        ({"budget": "all"}, "selector.budget"),
        ({"window": 0}, r"selector\.window must be at least 1, not 0"),
        ({"division": "optimal"}, r"selector\.division=optimal needs selector\.segments"),
        ({"segments": 0}, r"selector\.segments must be at least 1"),
        ({"of": "outliers"}, "'outliers' does not keep a given number"),
        ({"of": "topq"}, "Did you mean 'topk'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.create("selector", "grouped", **options)


def test_groups_that_a_family_does_not_have():
    with pytest.raises(prunekit.PrunekitError, match=r"'grouped' needs view\.places"):
        prunekit.Pruner(selector="grouped").apply(zoo.build("aya_vision"))
    selector, model = prunekit.create("selector", "grouped", by="tile"), zoo.build("llava")
    pruner = prunekit.Pruner("random", "single", "one_shot", selector)
    with torch.no_grad(), pruner(model), pytest.raises(prunekit.PrunekitError, match="'llava' does not cut images"):
        model(**zoo.batch("llava").inputs)
