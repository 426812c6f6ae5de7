"""Methods before the decoder against loops over an encoder run by hand in float64: what is kept, and its features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import prunekit
from hand_vision import (
    Image,
    best,
    cosine,
    determinants,
    entering,
    exact_batch,
    exact_model,
    farthest,
    looked,
    project,
    read,
    run,
    softmax,
    thin_out,
)
from zoo.tiny import make_batch

KINDS = ("clip", "siglip")
SEEDS = (0, 1)
FENCE = 0.9  # of 16 patches few are outliers by 1.5


def look(kind: str, seed: int):
    """A model, a batch of three images, and each image run by hand."""
    model, batch = exact_model(kind), exact_batch(make_batch("llava", "none", seed=seed))
    return model, batch, run(model, batch.inputs["pixel_values"])


def block_read(model, image: Image) -> int:
    return model.config.vision_feature_layer % (len(image.inputs) + 1) - 1


def check(model, batch, pruner, expected: list[tuple[list[int] | None, np.ndarray]]) -> None:
    """``expected``: for each sample the kept patches (None: not compared) and what reaches layer 0, in order."""
    found, trace = entering(model, batch, pruner)
    for b, (kept, tokens) in enumerate(expected):
        if kept is not None:
            assert trace.cuts[-1].kept[b].nonzero()[:, 0].tolist() == sorted(kept)
        assert found[b].shape == tokens.shape
        assert np.abs(found[b] - tokens).max() < 1e-5 * max(1.0, np.abs(tokens).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_fastervlm(kind, seed):
    model, batch, images = look(kind, seed)
    expected = []
    for image in images:
        kept = sorted(best(looked(model, image), 5))
        expected.append((kept, project(model, read(model, image)[kept])))
    check(model, batch, prunekit.method("fastervlm", keep_tokens=5), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "context"), [(0, 3), (1, 2)])
def test_visionzip(kind, seed, context):
    """CLS, dominant patches in raster order, then each target plus the mean of what is nearest to it by keys."""
    model, batch, images = look(kind, seed)
    expected = []
    for image in images:
        features, block = read(model, image), block_read(model, image)
        first = int(kind == "clip")
        keys = image.keys[block].mean(0)[first:]
        dominant = sorted(best(looked(model, image), 8 - context - first))
        rest = [i for i in range(16) if i not in dominant]
        step = max(1, len(rest) // context)
        targets = rest[::step][:context]
        groups: dict[int, list[int]] = {t: [] for t in targets}
        for i in rest:
            if i not in targets:
                groups[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(i)
        merged = [features[t] + (np.mean(features[g], axis=0) if g else 0) for t, g in groups.items()]
        head = [image.inputs[block][0]] if kind == "clip" else []
        expected.append((None, project(model, [*head, *features[dominant], *merged])))
    reducer = prunekit.create("reducer", "contextual", context=context / 8)
    check(model, batch, prunekit.method("visionzip", reducer=reducer, keep_tokens=8), expected)


def test_visionzip_splits_the_papers_budgets_as_the_paper_does():
    class View:
        site = "decoder"

    reducer = prunekit.create("reducer", "contextual")
    assert [reducer.split(View(), 576, k) for k in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]


def prumerge_scores(image: Image, model, kind: str) -> list[float]:
    """softmax(QKᵀ/√C) of the last block without a head split, CLS row or mean row."""
    layer = model.model.vision_tower.encoder.layers[-1]
    with torch.no_grad():
        normed = layer.layer_norm1(torch.from_numpy(image.inputs[-2]))
        q, k = layer.self_attn.q_proj(normed).numpy(), layer.self_attn.k_proj(normed).numpy()
    rows = [softmax([float(a @ b) / math.sqrt(len(a)) for b in k]) for a in q]
    return list(rows[0][1:]) if kind == "clip" else [float(np.mean([r[j] for r in rows])) for j in range(len(k))]


def prumerge_tokens(model, image: Image, kind: str, kept: list[int], scores: list[float], variant: str, near: int):
    features = read(model, image)
    keys = image.keys[-1].transpose(1, 0, 2).reshape(-1, features.shape[1])[int(kind == "clip") :]
    tokens = []
    for i in sorted(kept, key=lambda i: -scores[i]):
        others = sorted((j for j in range(16) if j != i), key=lambda j: -cosine(keys[i], keys[j]))[:near]
        total = sum(scores[j] for j in others) if variant == "paper" else 1.0
        tokens.append(features[i] + sum(scores[j] / total * features[j] for j in others))
    gone = [j for j in range(16) if j not in kept]
    total = sum(scores[j] for j in gone) if variant == "paper" else 1.0
    return project(model, [*tokens, sum(scores[j] / total * features[j] for j in gone)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_prumerge(kind, variant, name):
    model, batch, images = look(kind, 2)
    expected, keeps = [], []
    for image in images:
        scores = prumerge_scores(image, model, kind)
        low, high = np.percentile(scores, 25), np.percentile(scores, 75)
        kept = [i for i, s in enumerate(scores) if s > high + FENCE * (high - low)] or best(scores, 1)
        if name == "prumerge_plus":
            step = int(1 / (len(kept) / 16))
            kept = sorted({*kept, *range(0, 16, max(1, int(step / 3)))})
        keeps.append(len(kept))
        if len(kept) == 16:  # nothing goes, so that nothing changes
            expected.append((None, project(model, read(model, image))))
        else:
            expected.append((None, prumerge_tokens(model, image, kind, kept, scores, variant, 4)))
    assert min(keeps) < 16
    reducer = prunekit.create("reducer", "prumerge", nearest=4, variant=variant)
    selector = prunekit.create("selector", "outliers", fence=FENCE, spread=name == "prumerge_plus")
    check(model, batch, prunekit.method(name, reducer=reducer, selector=selector), expected)


def test_variants_are_chosen_by_method():
    assert prunekit.method("prumerge", variant="paper").reducer.variant == "paper"
    assert prunekit.method("prumerge_plus").reducer.variant == "code"
    with pytest.raises(ValueError, match="'papre'"):
        prunekit.method("prumerge", variant="papre")


def test_prumerge_with_a_budget_keeps_exactly_that():
    model, batch, images = look("clip", 2)
    expected = []
    for image in images:
        scores = prumerge_scores(image, model, "clip")
        expected.append((None, prumerge_tokens(model, image, "clip", best(scores, 5), scores, "code", 4)))
    selector = prunekit.create("selector", "outliers", adaptive=False)
    reducer = prunekit.create("reducer", "prumerge", nearest=4)
    check(model, batch, prunekit.method("prumerge", selector=selector, reducer=reducer, keep_tokens=6), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keep", "step"), [(5, 2), (6, 8), (9, 3)])
def test_vispruner(kind, keep, step):
    model, batch, images = look(kind, keep)
    expected = []
    for image in images:
        features = read(model, image)
        kept = sorted(thin_out(features, looked(model, image), keep, 0.5, step))
        expected.append((kept, project(model, features[kept])))
    selector = prunekit.create("selector", "vispruner", step=step)
    check(model, batch, prunekit.method("vispruner", selector=selector, keep_tokens=keep), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [1, 4, 9])
def test_divprune(kind, keep):
    model, batch, images = look(kind, keep)
    expected = []
    for image in images:
        projected = project(model, read(model, image))
        kept = sorted(farthest(projected, keep))
        expected.append((kept, projected[kept]))
    check(model, batch, prunekit.method("divprune", keep_tokens=keep), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [1, 4, 7])
def test_cdpruner(kind, keep):
    model, batch, images = look(kind, keep)
    table, expected = model.get_input_embeddings().weight.detach().numpy(), []
    for b, image in enumerate(images):
        projected = project(model, read(model, image))
        first = int(batch.visual[b].long().argmax())
        words = [table[i] for s, i in enumerate(batch.ids[b].tolist()) if s > first and not batch.visual[b, s]]
        relevance = [-float(np.mean([cosine(p, w) for w in words])) for p in projected]
        low, high = min(relevance), max(relevance)
        q = [(r - low + 1e-6) / (high - low) for r in relevance]
        kernel = np.array(
            [[q[i] * cosine(x, y) * q[j] for j, y in enumerate(projected)] for i, x in enumerate(projected)]
        )
        kept = sorted(determinants(kernel, keep))
        expected.append((kept, projected[kept]))
    check(model, batch, prunekit.method("cdpruner", keep_tokens=keep), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 2, 4])
def test_pooling_on_a_grid_that_divides_is_the_mean_over_cells(kind, side):
    model, batch, images = look(kind, side)
    expected = []
    for image in images:
        projected = project(model, read(model, image)).reshape(4, 4, -1)
        size = 4 // side
        cells = [
            projected[r : r + size, c : c + size].reshape(size * size, -1).mean(0)
            for r in range(0, 4, size)
            for c in range(0, 4, size)
        ]
        expected.append((None, np.stack(cells)))
    check(model, batch, prunekit.method("pooling", keep_tokens=side * side), expected)


def test_pooling_takes_the_nearest_grid_and_says_so():
    model, batch = exact_model("clip"), exact_batch(make_batch("llava"))
    with pytest.warns(UserWarning, match="pooling keeps 9 tokens, the nearest grid to 8"):
        _, trace = entering(model, batch, prunekit.method("pooling", keep_ratio=0.5))
    assert trace.cuts[0].kept.sum(1).tolist() == [9, 9, 9]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 2, 3])
def test_downsample_is_the_dense_encoder_on_a_smaller_image(kind, side):
    model, batch = exact_model(kind), exact_batch(make_batch("llava", seed=side))
    small = torch.nn.functional.interpolate(
        batch.inputs["pixel_values"].float(), (4 * side, 4 * side), mode="bicubic", antialias=True
    ).double()
    with torch.no_grad():
        out = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True)
        states = out.hidden_states[model.config.vision_feature_layer][:, int(kind == "clip") :]
        projected = model.model.multi_modal_projector(states).numpy()
    check(model, batch, prunekit.method("downsample", keep_tokens=side * side), [(None, p) for p in projected])


class Tomes:
    """ToMe by lists, one image: who merges with whom between attention and MLP."""

    def __init__(self, goes: list[int], protected: int) -> None:
        self.goes, self.protected = goes, protected

    def __call__(self, block: int, image: Image, keys: np.ndarray, attention: np.ndarray) -> None:
        metric = keys.mean(0)
        a, b = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
        match = {i: max(b, key=lambda j: cosine(metric[i], metric[j])) for i in a if i >= self.protected}
        edges = sorted(match, key=lambda i: -cosine(metric[i], metric[match[i]]))[: self.goes[block]]
        for i in edges:
            j = match[i]
            total = image.size[i] + image.size[j]
            image.x[j] = (image.x[i] * image.size[i] + image.x[j] * image.size[j]) / total
            image.size[j] = total
            image.patches[j] = sorted(image.patches[i] + image.patches[j])
        order = [i for i in a if i not in edges] + b
        image.x, image.size = image.x[order], [image.size[i] for i in order]
        image.patches = [image.patches[i] for i in order]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proportional", [True, False])
def test_tome(kind, proportional):
    """Which patches each token of the decoder is made of, and their features, after merging in every block."""
    model, batch = exact_model(kind, "sdpa"), exact_batch(make_batch("llava", seed=5))
    goes, first = ([5, 4], 1) if kind == "clip" else ([5, 4, 3], 0)
    images = run(model, batch.inputs["pixel_values"], Tomes(goes, first), weigh=proportional)
    schedule = prunekit.create("schedule", "every_block", counts=goes)
    reducer = prunekit.create("reducer", "bipartite", proportional=proportional)
    with pytest.warns(UserWarning, match=f"keeps {16 - sum(goes)} of an image's 16 patches"):
        found, trace = entering(model, batch, prunekit.method("tome", schedule=schedule, reducer=reducer))
    for b, image in enumerate(images):
        projected = project(model, image.x[first:])
        sources = trace.cuts[-1].sources[b].tolist()
        groups = {tuple(i for i in range(16) if sources[i] == s) for s in set(sources)}
        assert groups == {tuple(p) for p in image.patches[first:]}
        # In the decoder a merged token stands where the patch stood under whose name it goes on.
        order = sorted(range(len(projected)), key=lambda i: sources[image.patches[first + i][0]])
        assert np.abs(found[b] - projected[order]).max() < 1e-5


def evit_step(keep: dict[int, int], kind: str):
    def step(block: int, image: Image, keys: np.ndarray, attention: np.ndarray) -> None:
        if block not in keep:
            return
        mean, first = attention.mean(0), int(kind == "clip")
        scores = mean[0] if kind == "clip" else mean.mean(0)
        patches = sorted(range(first, len(mean)), key=lambda i: -scores[i])
        stays, gone = sorted(patches[: keep[block] - 1]), patches[keep[block] - 1 :]
        fused = sum(scores[i] * image.x[i] for i in gone)
        image.x = np.stack([*image.x[:first], *image.x[stays], fused])
        image.patches = [*image.patches[:first], *[image.patches[i] for i in stays], image.patches[gone[0]]]

    return step


@pytest.mark.parametrize("kind", KINDS)
def test_evit(kind):
    """The fused token is an ordinary one from then on: it may be kept, or fused again."""
    model, batch = exact_model(kind, "sdpa"), exact_batch(make_batch("llava", seed=6))
    images = run(model, batch.inputs["pixel_values"], evit_step({0: 9, 1: 5}, kind))
    schedule = prunekit.create("schedule", "evit", layers=[0, 1], ratios=[9 / 16, 5 / 9])
    found, trace = entering(model, batch, prunekit.method("evit", schedule=schedule))
    assert [cut.kept.sum(1).tolist() for cut in trace.cuts] == [[9] * 3, [5] * 3]
    first = int(kind == "clip")
    for b, image in enumerate(images):
        names = [p[0] for p in image.patches[first:]]
        assert trace.cuts[-1].kept[b].nonzero()[:, 0].tolist() == sorted(names)
        projected = project(model, image.x[first:])
        assert np.abs(found[b] - projected[np.argsort(names)]).max() < 1e-5


def test_evits_own_rate_keeps_a_share_and_one():
    """196 patches at 0.7: 138 and a fused one of 139, then 98 and 70."""
    schedule = prunekit.create("schedule", "evit", keep=0.7)
    cuts = schedule.vision_cuts(12, 196, 0.5)
    assert [(cut.layer, round(cut.ratio * 196)) for cut in cuts] == [(3, 139), (6, 99), (9, 71)]


def flow_step(model, keep: dict[int, int], kind: str):
    """FlowCut's scores, halved from block to block, by the patches' names."""
    running: dict[int, float] = {}

    def step(block: int, image: Image, keys: np.ndarray, attention: np.ndarray) -> None:
        first, (heads, size, width) = int(kind == "clip"), keys.shape
        queries, values = image.queries[-1], image.values[-1]
        asks = [queries[h, 0] if first else queries[h].mean(0) for h in range(heads)]
        looks = [softmax([float(asks[h] @ k) / math.sqrt(width) for k in keys[h]]) for h in range(heads)]
        alike = [softmax([float(values[h, 0] @ v) for v in values[h]]) for h in range(heads)]
        rows = [np.mean(looks, axis=0), *([np.mean(alike, axis=0)] if first else [])]
        running.update({} if block else dict.fromkeys(range(16), math.nan))
        for i in range(first, size):
            flow = sum(row[i] / sum(row[first:]) for row in rows)
            score = flow * sum(abs(np.mean([values[h, i] for h in range(heads)], axis=0)))
            before = running[image.patches[i][0]]
            running[image.patches[i][0]] = score if block == 0 else 0.5 * before + 0.5 * score
        if block in keep:
            ranked = sorted(range(first, size), key=lambda i: -running[image.patches[i][0]])
            stays = [*range(first), *sorted(ranked[: keep[block]])]
            image.x, image.patches = image.x[stays], [image.patches[i] for i in stays]

    return step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_flowcut(kind, seed):
    model, batch = exact_model(kind, "sdpa"), exact_batch(make_batch("llava", seed=seed))
    images = run(model, batch.inputs["pixel_values"], flow_step(model, {0: 9, 1: 5}, kind))
    schedule = prunekit.create("schedule", "encoder", layers=[0, 1], ratios=[9 / 16, 5 / 9])
    entered, trace = entering(model, batch, prunekit.method("flowcut", schedule=schedule))
    for b, image in enumerate(images):
        first = int(kind == "clip")
        assert trace.cuts[-1].kept[b].nonzero()[:, 0].tolist() == [p[0] for p in image.patches[first:]]
        assert np.abs(entered[b] - project(model, image.x[first:])).max() < 1e-5


@pytest.mark.parametrize(
    ("blocks", "patches", "keep", "entropy"), [(23, 576, 64, 0.9), (8, 144, 30, 0.5), (1, 16, 4, 1)]
)
def test_flowcuts_counts(blocks, patches, keep, entropy):
    """Those of the authors' loop, at one entropy: from the first block on, whenever an even number is left."""
    expected, left = {}, patches
    for block in range(blocks):
        remaining = (blocks - 1) - block - 1
        if left > keep and remaining >= 0 and remaining % 2 == 0:
            goes = round((left - keep) / remaining**0.5 * (1 - entropy**2)) if remaining else left
            left = max(left - goes, keep)
            expected[block] = left
    schedule = prunekit.create("schedule", "flowcut", entropy=entropy)
    cuts = {cut.layer: round(cut.ratio * patches) for cut in schedule.vision_cuts(blocks, patches, keep / patches)}
    assert cuts == (expected or {0: keep})
    with pytest.raises(prunekit.PrunekitError, match=r"schedule.entropy must lie in \[0, 1\]"):
        prunekit.create("schedule", "flowcut", entropy=1.5)


def test_a_schedule_of_merging_counts():
    """Constant, falling and rising numbers; the budget is met where blocks that halve at most can meet it."""

    def left(**options):
        schedule = prunekit.create("schedule", "every_block", **options)
        return [round(cut.ratio * 196) for cut in schedule.vision_cuts(12, 196, 0.25)]

    assert left(r=8) == [196 - 8 * (i + 1) for i in range(12)]
    falling, n = [], 196
    for i in range(12):
        n -= int(16 * (1 - i / 11))
        falling.append(n)
    assert left(r=8, inflection=-1.0) == falling[:11]  # the last block merges none
    assert left()[-1] == 49
    two = prunekit.create("schedule", "every_block").vision_cuts(2, 144, 0.25)
    assert [round(cut.ratio * 144) for cut in two] == [72, 36]
    assert round(prunekit.create("schedule", "every_block").vision_cuts(2, 144, 0.1)[-1].ratio * 144) == 36
