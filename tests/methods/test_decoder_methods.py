"""Methods of 2025 and 2026 inside the decoder, each against its rule in plain loops on tiny random models.

What enters a layer is taken from the model itself by hooks; projections, softmax, norms and choices are done here by
hand in float64, sample by sample.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import prunekit
import zoo
from prunekit.families import family_of

FAMILIES = ("llava", "qwen2_vl")
PADDINGS = ("none", "left", "right")


@functools.cache
def model_of(name: str, attn: str = "sdpa"):
    return zoo.build(name, attn)


@dataclass
class Layer:
    """What one sample shows in one layer: inputs [n, D], the norm's output [n, D] and the module."""

    hidden: np.ndarray
    normed: np.ndarray
    module: torch.nn.Module
    visual: list[int]  # places of its visual tokens, in order
    text: list[int]  # places of its instruction


def note(seen: list) -> Any:
    """A pre-hook that notes what enters a layer."""
    return lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"])


def layers_of(name: str, batch) -> list[list[Layer]]:
    """For each sample the layers of the dense model, padding left out."""
    model, seen, hooks = model_of(name), [], []
    for layer in family_of(model).layers:
        hooks.append(layer.register_forward_pre_hook(note(seen), with_kwargs=True))
        hooks.append(layer.input_layernorm.register_forward_hook(lambda m, a, out: seen.append(out)))
    with torch.no_grad():
        model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    samples = []
    for b in range(3):
        real = batch.mask[b].nonzero()[:, 0].tolist()
        visual = [i for i, place in enumerate(real) if batch.visual[b, place]]
        text = [i for i, place in enumerate(real) if not batch.visual[b, place] and i > visual[0]]
        samples.append([
            Layer(seen[2 * i][b, real].double().numpy(), seen[2 * i + 1][b, real].double().numpy(),
                  layer.self_attn, visual, text)
            for i, layer in enumerate(family_of(model).layers)
        ])  # fmt: skip
    return samples


def project(layer: Layer, which: str) -> np.ndarray:
    """Heads [n, H, d] of a projection, before the rotary embedding."""
    linear = getattr(layer.module, f"{which}_proj")
    rows = layer.normed @ linear.weight.detach().double().numpy().T
    if linear.bias is not None:
        rows = rows + linear.bias.detach().double().numpy()
    return rows.reshape(len(rows), -1, layer.module.head_dim)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def best(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def pruned(method, name: str, batch):
    with torch.no_grad(), method(model_of(name)) as trace:
        model_of(name)(**batch.inputs)
    return trace.cuts


def kept(cut, b: int) -> set[int]:
    return set(cut.kept[b].nonzero()[:, 0].tolist())


# -- FEATHER -----------------------------------------------------------------------------------------------------------


def feather_scores(layer: Layer) -> list[float]:
    q, k = project(layer, "q"), project(layer, "k")
    heads, shared = q.shape[1], q.shape[1] // k.shape[1]
    total = np.zeros(len(layer.visual))
    for h in range(heads):
        logits = [q[-1, h] @ k[i, h // shared] / math.sqrt(q.shape[-1]) for i in layer.visual]
        total += softmax(np.array(logits)) / heads
    return total.tolist()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stride", [2, 3])
def test_feather(name, padding, stride):
    batch = zoo.batch(name, padding, seed=stride)
    selector = prunekit.create("selector", "feather", stride=stride)
    schedule = prunekit.create("schedule", "progressive", layers=[1, 2])
    first, second = pruned(
        prunekit.method("feather", keep_ratio=0.25, selector=selector, schedule=schedule), name, batch
    )
    grids = grids_of(name, batch)
    for b, sample in enumerate(layers_of(name, batch)):
        scores = feather_scores(sample[0])
        rows, columns = grids[b]
        grid = {r * columns + c for r in range(0, rows, stride) for c in range(0, columns, stride)}
        n = rows * columns
        assert len(scores) == n
        assert np.abs(first.scores[b, :n].double().numpy() - scores).max() < 1e-6
        assert kept(first, b) == best(scores, max(1, round(0.5 * n))) | grid
        assert kept(second, b) <= kept(first, b) and len(kept(second, b)) == max(1, round(0.25 * n))


def grids_of(name: str, batch) -> list[tuple[int, int]]:
    """Rows and columns of the visual tokens of each sample's image."""
    if name == "qwen2_vl":
        return [(h // 2, w // 2) for _, h, w in batch.inputs["image_grid_thw"].tolist()]
    return [(math.isqrt(n), math.isqrt(n)) for n in batch.visual.sum(1).tolist()]


def test_feathers_second_cut_reads_what_stands():
    """Its scores are those of the same rule on the hidden states that enter the second layer of evidence."""
    name, batch = "llava", zoo.batch("llava", "left", seed=5)
    schedule = prunekit.create("schedule", "progressive", layers=[1, 2])
    layer, entered = family_of(model_of(name)).layers[1], []
    hook = layer.input_layernorm.register_forward_hook(lambda m, a, out: entered.append(out))
    first, second = pruned(prunekit.method("feather", keep_ratio=0.25, schedule=schedule), name, batch)
    hook.remove()
    for b in range(3):
        names = sorted(kept(first, b))
        text_before = [i for i in batch.mask[b].nonzero()[:, 0].tolist() if not batch.visual[b, i]]
        start = int(batch.visual[b].nonzero()[0, 0])
        before, total = sum(i < start for i in text_before), len(text_before) + len(names)
        rows = entered[0][b, -total:].double().numpy()
        scores = feather_scores(Layer(rows, rows, layer.self_attn, list(range(before, before + len(names))), []))
        got = second.scores[b, names].double().numpy()
        assert np.abs(got - scores).max() < 1e-6
        chosen = {names[i] for i in best(scores, max(1, round(0.25 * int(batch.visual[b].sum()))))}
        assert kept(second, b) == chosen


def test_feather_needs_a_rotary_embedding():
    with pytest.raises(prunekit.PrunekitError, match=r"'feather' undoes the rotary embedding, .* 'blip-2' has none"):
        prunekit.method("feather", keep_ratio=0.5).apply(zoo.build("blip-2"))


@pytest.mark.parametrize("stride", [0, -3])
def test_wrong_strides(stride):
    with pytest.raises(prunekit.PrunekitError, match=r"selector\.stride must be at least 1"):
        prunekit.create("selector", "feather", stride=stride)


# -- V2Drop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_v2drop(name, padding):
    batch = zoo.batch(name, padding, seed=7)
    cuts = pruned(prunekit.method("v2drop", keep_tokens=1), name, batch)
    assert [cut.layer for cut in cuts] == [1, 2, 3]
    for b, sample in enumerate(layers_of(name, batch)):
        n = len(sample[0].visual)
        change = [math.dist(sample[1].hidden[i], sample[0].hidden[i]) for i in sample[0].visual]
        assert np.abs(cuts[0].scores[b, :n].double().numpy() - change).max() < 1e-4
        assert kept(cuts[0], b) == best(change, max(1, round(0.5 * n)))
        sizes = [len(kept(cut, b)) for cut in cuts]
        assert sizes == [max(1, round(0.5 * n)), max(1, round(0.25 * n)), 1]
        assert kept(cuts[2], b) <= kept(cuts[1], b) <= kept(cuts[0], b)


def test_v2drops_paper_leaves_none():
    batch = zoo.batch("llava", "left")
    with torch.no_grad(), prunekit.method("v2drop", variant="paper")(model_of("llava")) as trace:
        out = model_of("llava").generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    assert trace.cuts[-1].kept.sum() == 0 and out.shape[1] == batch.ids.shape[1] + 2
    assert (trace.tokens_per_layer[0] - trace.tokens_per_layer[-1]).tolist() == batch.visual.sum(1).tolist()


def test_v2drop_on_a_decoder_of_32_layers():
    schedule = prunekit.create("schedule", "v2drop")
    assert [(cut.layer, cut.ratio) for cut in schedule.cuts(32, 0.1)] == [(3, 0.5), (17, 0.25), (22, 0.1)]
    with pytest.raises(prunekit.PrunekitError, match="a decoder of 2 layers has no place for three cuts"):
        schedule.cuts(2, 0.1)
    with pytest.raises(prunekit.PrunekitError, match=r"schedule\.variant"):
        prunekit.create("schedule", "v2drop", variant="mine")


# -- VTW ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_vtw_withdraws_before_the_middle_of_the_depth(name):
    model, batch = model_of(name), zoo.batch(name, "left")
    with torch.no_grad(), prunekit.method("vtw")(model) as trace:
        model(**batch.inputs)
    assert [cut.layer for cut in trace.cuts] == [2] and not trace.cuts[0].kept.any()


# -- DART as its code chooses ------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def rotated_keys(name: str, batch) -> list[np.ndarray]:
    """What layer 0 leaves in the cache of each sample, [n, H · d]."""
    with torch.no_grad():
        cache = model_of(name)(**batch.inputs, use_cache=True).past_key_values
    keys = cache.layers[0].keys.transpose(1, 2).flatten(2).double().numpy()
    return [keys[b][batch.mask[b].numpy()] for b in range(3)]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("pivots", "keep"), [((2, 2), 0.5), ((3, 0), 0.5), ((4, 1), 0.25)])
def test_dart_code(name, padding, pivots, keep):
    batch = zoo.batch(name, padding, seed=11)
    selector = prunekit.create("selector", "pivots", visual=pivots[0], text=pivots[1])
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    (cut,) = pruned(prunekit.method("dart_code", keep_ratio=keep, selector=selector, schedule=schedule), name, batch)
    for b, (sample, keys) in enumerate(zip(layers_of(name, batch), rotated_keys(name, batch), strict=True)):
        visual, text, x = sample[1].visual, sample[1].text, sample[1].hidden
        norms = np.abs(keys).sum(1)
        budget = max(1, round(keep * len(visual)))
        chosen = sorted(sorted(visual, key=lambda i: -norms[i])[: min(pivots[0], budget)])
        asking = chosen + sorted(sorted(text, key=lambda i: -norms[i])[: pivots[1]])
        rest, expected = budget - len(chosen), set(chosen)
        for turn, pivot in enumerate(asking):
            share = rest // len(asking) + (turn < rest % len(asking))
            free = sorted((i for i in visual if i not in expected), key=lambda i: (cosine(x[i], x[pivot]), i))
            expected |= set(free[:share])
        assert kept(cut, b) == {visual.index(i) for i in expected}


def test_pivots_without_their_scorer():
    pruner = prunekit.method("dart_code", keep_ratio=0.5, scorer="random")
    with pytest.raises(prunekit.PrunekitError, match="needs scorer=key_norm"):
        pruned(pruner, "llava", zoo.batch("llava"))
    with pytest.raises(prunekit.PrunekitError, match=r"selector\.visual must be at least 1"):
        prunekit.create("selector", "pivots", visual=0)


# -- TokenCarve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("weight", "keep"), [(0.5, 0.5), (0.25, 0.25), (1.0, 0.75)])
def test_tokencarve(name, padding, weight, keep):
    batch = zoo.batch(name, padding, seed=13)
    selector = prunekit.create("selector", "tokencarve", weight=weight)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    model, entered = model_of(name), []
    hook = family_of(model).layers[1].input_layernorm.register_forward_pre_hook(lambda m, a: entered.append(a[0]))
    (cut,) = pruned(prunekit.method("tokencarve", keep_ratio=keep, selector=selector, schedule=schedule), name, batch)
    hook.remove()
    attention = eager_rows(name, batch)
    for b, sample in enumerate(layers_of(name, batch)):
        visual, x = sample[1].visual, sample[1].hidden[sample[1].visual]
        n, budget = len(visual), max(1, round(keep * len(visual)))
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        information = [sum(abs(u[i, j] * s[j]) for j in range(len(s))) for i in range(n)]
        rows = [attention[b][i] for i in visual]
        points = [0.0] * n
        for scores, share in ((rows, weight), (information, 1 - weight)):
            for place, i in enumerate(sorted(range(n), key=lambda i: (-scores[i], i))):
                points[i] += share * (n - place)
        candidates = sorted(range(n), key=lambda i: (-points[i], i))[: int(1.5 * budget)]
        half = len(candidates) // 2
        better, others = candidates[:half], sorted(candidates[half:])
        near = {i: max(better, key=lambda j: (cosine(x[i], x[j]), -j)) for i in others if better}
        merged = sorted(near, key=lambda i: (-cosine(x[i], x[near[i]]), i))[: len(candidates) - budget]
        assert kept(cut, b) == set(candidates) - set(merged)
        far = np.abs(entered[0][b].double().numpy() - sample[1].hidden[0]).max(1)
        first = np.nonzero(far < 1e-6)[0][-1]  # slots of padding repeat the sample's first token
        got = entered[0][b, first + visual[0] :].double().numpy()
        for row, i in enumerate(sorted(kept(cut, b))):
            group = [i, *(j for j in merged if near[j] == i)]
            assert np.abs(got[row] - np.mean([x[j] for j in group], axis=0)).max() < 1e-5


def eager_rows(name: str, batch) -> list[np.ndarray]:
    """What the last token of each sample gives in layer 0, mean over heads, padding left out."""
    model, weights = model_of(name, "eager"), []
    attention = family_of(model).attentions[0]
    hook = attention.register_forward_hook(lambda m, a, out: weights.append(out[1]))
    with torch.no_grad():
        model(**batch.inputs)
    hook.remove()
    mean = weights[0].double().mean(1).numpy()
    real = [batch.mask[b].nonzero()[:, 0].tolist() for b in range(3)]
    return [mean[b, places[-1]][places] for b, places in enumerate(real)]


def test_tokencarves_parts_belong_together():
    with pytest.raises(prunekit.PrunekitError, match="the selector assigns no token"):
        pruned(prunekit.method("tokencarve", keep_ratio=0.5, selector="topk"), "llava", zoo.batch("llava"))
    with pytest.raises(prunekit.PrunekitError, match=r"selector\.weight must lie in \[0, 1\]"):
        prunekit.create("selector", "tokencarve", weight=2.0)


# -- SparseVLM+ --------------------------------------------------------------------------------------------------------


def gravity(name: str, batch, width: int) -> list[np.ndarray]:
    """For each sample [n, n]: Σ 2·cos(distance · frequency) / √d over the d/2 frequencies, M-RoPE's by its sections."""
    model, seen = model_of(name), []
    rotary = family_of(model).rotary
    hook = rotary.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch.inputs)
    hook.remove()
    places = (
        seen[0].expand(3, 3, -1).double().numpy() if seen[0].ndim == 3 else seen[0].expand(1, 3, -1).double().numpy()
    )
    rope = model.config.text_config.rope_parameters
    axes = [axis for axis, size in enumerate(rope.get("mrope_section", [width // 2])) for _ in range(size)]
    pulls = []
    for b in range(3):
        real = batch.mask[b].nonzero()[:, 0].tolist()
        total = np.zeros((len(real), len(real)))
        for i in range(width // 2):
            own = places[axes[i] % len(places), b, real]
            total += 2 * np.cos((own[:, None] - own[None]) / rope["rope_theta"] ** (2 * i / width)) / math.sqrt(width)
        pulls.append(total)
    return pulls


def raters(embeds: np.ndarray, visual: list[int], text: list[int]) -> list[int]:
    share = np.mean([softmax(np.array([embeds[v] @ embeds[w] for w in text])) for v in visual], axis=0)
    return [w for w, r in zip(text, share, strict=True) if r > share.mean()]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0.5, 0.25, 1.0])
def test_sparsevlm_plus(name, padding, share):
    batch = zoo.batch(name, padding, seed=17)
    scorer = prunekit.create("scorer", "sparsevlm_plus", share=share)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    (cut,) = pruned(prunekit.method("sparsevlm_plus", keep_ratio=0.25, scorer=scorer, schedule=schedule), name, batch)
    model, weights = model_of(name, "eager"), []
    hook = family_of(model).attentions[0].register_forward_hook(lambda m, a, out: weights.append(out[1]))
    with torch.no_grad():
        model(**batch.inputs)
    hook.remove()
    width = family_of(model).attentions[0].head_dim
    pulls = gravity(name, batch, width)
    for b, sample in enumerate(layers_of(name, batch)):
        real, layer = batch.mask[b].nonzero()[:, 0].tolist(), sample[0]
        rows = weights[0][b].double().numpy()[:, real][:, :, real] / pulls[b]
        chosen = raters(layer.hidden, layer.visual, layer.text)
        looks = {h: sum(rows[h, q, v] for q in chosen for v in layer.visual) for h in range(len(rows))}
        heads = sorted(looks, key=lambda h: (-looks[h], h))[: max(1, int(share * len(looks)))]
        scores = [np.mean([rows[h, q, v] for h in heads for q in chosen]) for v in layer.visual]
        got = cut.scores[b, : len(scores)].double().numpy()
        assert np.abs(got - scores).max() < 1e-5 * max(1.0, np.abs(scores).max())
        assert kept(cut, b) == best(scores, max(1, round(0.25 * len(scores))))


def test_sparsevlm_plus_says_what_it_cannot_do():
    for options, line in (
        ({"share": 0.0}, r"scorer\.share must lie in"),
        ({"heads": "max"}, r"scorer\.heads: of the heads"),
    ):
        with pytest.raises(prunekit.PrunekitError, match=line):
            prunekit.create("scorer", "sparsevlm_plus", **options)
    with pytest.raises(prunekit.PrunekitError, match="undoes the rotary embedding"):
        prunekit.method("sparsevlm_plus", keep_ratio=0.5).apply(zoo.build("blip-2"))
    with pytest.raises(prunekit.PrunekitError, match="none that a fusion has joined"):
        pruned(prunekit.method("sparsevlm_plus", keep_ratio=0.5, fusion="rollout"), "llava", zoo.batch("llava"))


def test_counts_of_the_second_version():
    cuts = prunekit.create("schedule", "sparsevlm_plus", label=192).cuts(32, 118 / 576)
    assert [(cut.layer, round(576 * cut.ratio)) for cut in cuts] == [(3, 300), (7, 200), (16, 118)]


# -- PACT --------------------------------------------------------------------------------------------------------------


def euti(layer: Layer) -> list[float]:
    q, k = project(layer, "q"), project(layer, "k")
    upto = range(max(layer.visual) + 1)
    heads, shared, total = q.shape[1], q.shape[1] // k.shape[1], np.zeros(len(upto))
    for h in range(heads):
        mean = sum(q[i, h] for i in upto) / len(upto)
        total += softmax(np.array([mean @ k[i, h // shared] / math.sqrt(q.shape[-1]) for i in upto])) / heads
    return [total[v] * np.linalg.norm(layer.hidden[v]) for v in layer.visual]


def centres(far: dict[tuple[int, int], float], points: list[int], cutoff: float) -> list[int]:
    density = {i: sum(math.exp(-((far[i, j] / 2) ** 2)) for j in points) for i in points}
    chosen: list[int] = []
    for i in sorted(points, key=lambda i: (-density[i], i)):
        if all(far[i, c] > cutoff for c in chosen):
            chosen.append(i)
    return chosen


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("cutoff", "important"), [(0.6, 0.75), (0.9, 1.0), (None, 0.75)])
def test_pact(name, padding, cutoff, important):
    batch = zoo.batch(name, padding, seed=19)
    selector = prunekit.create("selector", "dbdpc", cutoff=cutoff, important=important)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    model = model_of(name)
    (cut,) = pruned(prunekit.method("pact", keep_ratio=0.5, selector=selector, schedule=schedule), name, batch)
    with torch.no_grad():
        cache = model(**batch.inputs, use_cache=True).past_key_values
    keys = cache.layers[1].keys.transpose(1, 2).flatten(2).double().numpy()
    for b, sample in enumerate(layers_of(name, batch)):
        layer, k = sample[1], keys[b][batch.mask[b].numpy()]
        scores, n = euti(layer), len(layer.visual)
        assert np.abs(cut.scores[b, :n].double().numpy() - scores).max() < 1e-5 * max(scores)
        far = {(i, j): 0.0 if i == j else max(0.0, 1 - cosine(k[layer.visual[i]], k[layer.visual[j]]))
               for i in range(n) for j in range(n)}  # fmt: skip
        budget = max(1, round(0.5 * n))
        points = sorted(best(scores, max(budget, int(important * n))))
        if cutoff is None:
            assert len(kept(cut, b)) == budget
            steps = sorted({0.0, *far.values()})
            enough = [c for c in steps if len(centres(far, points, c)) >= budget]
            options = [set(centres(far, points, c)[:budget]) for c in enough]
            assert kept(cut, b) in options
        else:
            assert kept(cut, b) == set(centres(far, points, cutoff)[:budget])


@pytest.mark.parametrize("seed", range(4))
def test_pacts_others_go_to_the_nearest_centre_within_reach(seed):
    g = torch.Generator().manual_seed(seed)
    keys, scores, alive = torch.randn(2, 20, 3, generator=g), torch.rand(2, 20, generator=g), torch.ones(2, 20) > 0
    alive[1, 15:] = False

    notes = {"keys of the visual tokens": keys}
    view = SimpleNamespace(notes=notes, slots=torch.arange(20).expand(2, -1), alive=alive)
    selector = prunekit.create("selector", "dbdpc", cutoff=0.2, important=0.5, reach=2.0)
    got = selector.select(view, scores.masked_fill(~alive, -torch.inf), torch.tensor([20, 15]) // 2)
    for b, n in enumerate((20, 15)):
        k = keys[b].double().numpy()
        chosen = got[b].nonzero()[:, 0].tolist()
        for i in range(n):
            if i in chosen:
                continue
            near = min(chosen, key=lambda c: (1 - cosine(k[i], k[c]), c))
            expected = near if 1 - cosine(k[i], k[near]) <= 0.4 else -1
            assert int(notes["assigned"][b, i]) == expected


def test_pact_says_what_it_cannot_do():
    for options, line in (
        ({"important": 0.0}, r"selector\.important"),
        ({"cutoff": 3.0}, r"selector\.cutoff"),
        ({"reach": 0.5}, r"selector\.reach"),
    ):
        with pytest.raises(prunekit.PrunekitError, match=line):
            prunekit.create("selector", "dbdpc", **options)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    with pytest.raises(prunekit.PrunekitError, match="needs scorer=euti"):
        pruned(prunekit.method("pact", keep_ratio=0.5, scorer="random", schedule=schedule), "llava", zoo.batch("llava"))
