"""Selections at the input of 2025 and 2026 against loops over lists: a CLIP tower by hand, and an M-RoPE family."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch

import prunekit
import zoo
from hand_vision import cosine

CASES = [(name, padding) for name in ("llava", "qwen2_5_vl") for padding in ("left", "right", "none")]


class Sample:
    """What an oracle knows of one sample: its visual tokens, their encoder features and attention, and the question."""

    def __init__(self, view, b: int) -> None:
        own = view.alive[b].nonzero()[:, 0].tolist()
        take = lambda x: x[b, own].double().numpy()  # noqa: E731
        self.tokens, self.features = take(view.visual(view.hidden_states)), take(view.vision.features)
        self.attention = take(view.vision.attention())
        self.blocks = {block: take(view.vision.attention(block)) for block in (*range(len(view.vision.tower.blocks)),)}
        self.words = view.inputs_embeds[b][view.layout.text[b]].double().numpy()
        places = view.places
        self.places = [tuple(int(x[b, n]) for x in (places.medium, places.row, places.column)) for n in own]
        self.sizes = [(int(places.rows[b, n]), int(places.columns[b, n])) for n in own]


class Reader(prunekit.Scorer):
    """Keeps samples of the last prefill."""

    uses_vision = uses_places = True

    def vision_blocks(self, blocks):
        return range(blocks)

    def score(self, view):
        self.samples = [Sample(view, b) for b in range(len(view.alive))]
        return view.alive.float()


@functools.cache
def model_of(name: str):
    return zoo.build(name)


def samples_of(name: str, batch) -> list[Sample]:
    reader = Reader()
    with torch.no_grad(), prunekit.Pruner(reader, "single", "input", keep_ratio=0.5)(model_of(name)):
        model_of(name)(**batch.inputs)
    return reader.samples


def compare(name: str, padding: str, pruner: prunekit.Pruner, expected) -> None:
    """``expected(sample, keep)`` are the numbers of a sample's tokens that stay."""
    batch = zoo.batch(name, padding, seed=np.random.randint(1000))
    samples = samples_of(name, batch)
    pruner = pruner.replace(positions="keep")  # M-RoPE knows no other
    with torch.no_grad(), pruner(model_of(name)) as trace:
        model_of(name)(**batch.inputs)
    for b, sample in enumerate(samples):
        keep = max(1, round(pruner.keep_ratio * len(sample.tokens)))
        assert trace.cuts[0].kept[b].nonzero()[:, 0].tolist() == sorted(expected(sample, keep))


def order(scores, among) -> list[int]:
    return sorted(among, key=lambda n: -scores[n])


def covered(rows: list[list[float]], keep: int, gain_of=lambda gain, n: gain) -> list[int]:
    """Greedy: the token that raises the sum over rows of the best so far most."""
    best, chosen = [0.0] * len(rows), []
    for _ in range(keep):
        gains = {
            n: gain_of(sum(max(0.0, row[n] - b) for row, b in zip(rows, best, strict=True)), n)
            for n in range(len(rows[0]))
            if n not in chosen
        }
        pick = max(gains, key=lambda n: (round(gains[n], 12), -n))
        chosen.append(pick)
        best = [max(b, row[pick]) for row, b in zip(rows, best, strict=True)]
    return chosen


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize(("alpha", "combine"), [(1.0, "multi"), (0.5, "multi"), (1.0, "add"), (0.1, "multi")])
def test_scope(name, padding, alpha, combine):
    def scope(sample, keep):
        rows = [[cosine(x, y) for y in sample.tokens] for x in sample.tokens]
        salience = [a**alpha for a in sample.attention]
        return covered(rows, keep, lambda gain, n: gain * salience[n] if combine == "multi" else gain + salience[n])

    selector = prunekit.create("selector", "coverage", alpha=alpha, combine=combine)
    compare(name, padding, prunekit.method("scope", selector=selector, keep_ratio=0.4), scope)


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize(
    ("image", "text_temperature", "image_temperature"), [(0.5, 0.02, 0.2), (0.0, 0.3, 0.2), (2.0, 0.1, 1.0)]
)
def test_mmtok(name, padding, image, text_temperature, image_temperature):
    def softmax(values):
        exps = [math.exp(v - max(values)) for v in values]
        return [e / sum(exps) for e in exps]

    def mmtok(sample, keep):
        text = [softmax([cosine(w, x) / text_temperature for x in sample.tokens]) for w in sample.words]
        vision = [softmax([cosine(f, g) / image_temperature for g in sample.features]) for f in sample.features]
        rows = [[p / len(text) for p in row] for row in text]
        rows += [[image * q / len(vision) for q in row] for row in vision]
        return covered(rows, keep)

    options = dict(image=image, text_temperature=text_temperature, image_temperature=image_temperature)
    selector = prunekit.create("selector", "mmtok", **options)
    compare(name, padding, prunekit.method("mmtok", selector=selector, keep_ratio=0.4), mmtok)


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize("share", [0.5, 0.1, 1.0])
def test_mmr(name, padding, share):
    def mmr(sample, keep):
        low, high = min(sample.attention), max(sample.attention)
        importance = [(a - low) / (high - low + 1e-6) for a in sample.attention]
        chosen = [order(importance, range(len(importance)))[0]]
        while len(chosen) < keep:
            rest = [n for n in range(len(importance)) if n not in chosen]
            worth = {
                n: share * importance[n] - (1 - share) * max(cosine(sample.tokens[n], sample.tokens[c]) for c in chosen)
                for n in rest
            }
            chosen.append(order(worth, rest)[0])
        return chosen

    selector = prunekit.create("selector", "mmr", share=share)
    compare(name, padding, prunekit.method("mmr", selector=selector, keep_ratio=0.4), mmr)


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize(("crops", "context", "ratio"), [(4, 0.09, 0.5), (3, 5.0, 0.7), (5, 0.0, 0.2)])
def test_holov(name, padding, crops, context, ratio, variant):
    def holov(sample, keep):
        total = len(sample.tokens)
        sizes = [total // crops + (p < total % crops) for p in range(crops)]
        bounds = np.cumsum([0, *sizes])
        groups = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
        holistic, weights = list(sample.attention), []
        for group in groups:
            varies = {}
            for i in group:
                row = [0.0 if i == j else cosine(sample.tokens[i], sample.tokens[j]) for j in group]
                others = max(len(group) - 1, 1)
                mean = sum(row) / others
                varies[i] = sum((x - mean) ** 2 for x in row) / others
            level = np.mean([sample.attention[i] for i in group]) if group else 0.0
            for i in group:
                holistic[i] += context * varies[i] * level / (np.mean(list(varies.values())) + 1e-6)
            weights.append(np.mean([holistic[i] for i in group]) if group else 0.0)
        wanted = [w / sum(weights) * keep for w in weights]
        counts = [math.floor(w) for w in wanted]
        for group in order(wanted, range(crops))[: keep - sum(counts)]:
            counts[group] += 1
        by = holistic if variant == "paper" else sample.attention
        kept = [n for group, count in zip(groups, counts, strict=True) for n in order(by, group)[:count]]
        rest = [n for n in range(total) if n not in kept]
        return kept + order(sample.attention, rest)[: keep - len(kept)]

    selector = prunekit.create("selector", "holov", crops=crops, context=context, variant=variant)
    compare(name, padding, prunekit.method("holov", selector=selector, keep_ratio=ratio), holov)


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize(("alpha", "ratio"), [(0.1, 0.5), (1.0, 0.7), (0.6, 0.9), (0.0, 0.5)])
def test_hiprune(name, padding, alpha, ratio):
    def hiprune(sample, keep):
        blocks = len(sample.blocks)
        early, late = sample.blocks[max(round(9 / 24 * blocks) - 1, 0)], sample.blocks[blocks - 1]
        count = round(alpha * keep / 5)
        count = max(count, 1) if keep >= 5 and alpha > 0 else count
        anchors = order(early, range(len(early)))[:count]
        ring = set(anchors)
        for anchor in anchors:
            medium, row, column = sample.places[anchor]
            rows, columns = sample.sizes[anchor]
            for step in (-1, 1, -columns, columns):
                number = min(max(row * columns + column + step, 0), rows * columns - 1)
                ring.add(sample.places.index((medium, *divmod(number, columns))))
        if len(ring) > keep:
            buffers = order(early, [n for n in ring if n not in anchors])
            ring = {*anchors, *buffers[: keep - len(anchors)]}
        rest = [n for n in range(len(early)) if n not in ring]
        return [*ring, *order(late, rest)[: keep - len(ring)]]

    selector = prunekit.create("selector", "hiprune", alpha=alpha)
    compare(name, padding, prunekit.method("hiprune", selector=selector, keep_ratio=ratio), hiprune)


@pytest.mark.parametrize(
    ("selector", "options", "message"),
    [
        ("coverage", {"alpha": -1.0}, "selector.alpha must be at least 0"),
        ("coverage", {"combine": "mult"}, "Did you mean 'multi'"),
        ("mmtok", {"image_temperature": 0.0}, "selector.image_temperature must be above 0"),
        ("mmr", {"share": 1.5}, r"selector.share must lie in \[0, 1\]"),
        ("holov", {"crops": 0}, "selector.crops must be at least 1"),
        ("hiprune", {"depth": 0.0}, r"selector.depth must lie in \(0, 1\]"),
    ],
)
def test_options_out_of_range(selector, options, message):
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.create("selector", selector, **options)


@pytest.mark.parametrize("method", ["mmtok", "hiprune", "holov", "scope", "mmr"])
def test_a_family_whose_encoder_is_not_known_is_refused_in_one_line(method):
    with pytest.raises(prunekit.PrunekitError, match="is not known") as caught:
        prunekit.method(method).apply(zoo.build("ovis2"))
    assert "\n" not in str(caught.value)
