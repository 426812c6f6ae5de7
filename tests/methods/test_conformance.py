"""Each method inside the decoder against its formula in plain loops, on a tiny random LLaVA run by hand.

``simulate`` runs the model without prunekit, one sample at a time; the functions here decide what stays. Kept sets must
be the same, and so must the logits, which they are only if removal, merging and positions are.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import prunekit
import simulate
from prunekit.data import load
from prunekit.evaluation.batches import Batcher
from prunekit.models import load_model
from simulate import Sample, best, clusters, received, recycle, rotate, rows, share
from zoo.tiny import PADDINGS, make_batch, tiny_model

TOLERANCE = 1e-4
N = 16


def fastv(sample: Sample, cut: int, ratio: float, query: str, itself: bool) -> None:
    seen = sample.seen[cut - 1]
    scores = received(seen.attention.mean(0), seen, rows(seen, query), itself)
    sample.drop(best(scores, share(ratio, N)))


def ivtp(sample: Sample, cut: int, ratio: float) -> None:
    totals: dict[int, float] = {}
    for seen in sample.seen[:cut]:
        for name, value in received(seen.attention.mean(0), seen, rows(seen, "text")).items():
            totals[name] = totals.get(name, 0.0) + value / cut
    sample.drop(best({name: totals[name] for name in sample.visual}, share(ratio, N)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def ivtp_rollout(sample: Sample, cut: int, ratio: float, previous: int) -> None:
    image = np.mean([sample.embeds[i] for i, token in enumerate(sample.ids) if token == 90], axis=0)
    first = sample.ids.index(90)
    words = [i for i, token in enumerate(sample.ids) if token != 90 and i > first]
    alike = {i: cosine(sample.embeds[i], image) for i in words}
    chosen = [i for i in words if alike[i] > sum(alike.values()) / len(alike)]
    group = sample.seen[previous:cut]
    product = np.eye(len(group[0].names))
    for seen in group:
        product = (0.5 * np.eye(len(seen.names)) + 0.5 * seen.attention.mean(0)) @ product
    # text places are counted from the end, where nothing goes
    back = [i - len(sample.ids) + len(group[-1].names) for i in chosen]
    sample.drop(best(received(product, group[-1], back), share(ratio, N)))


def pyramiddrop(sample: Sample, cut: int, ratio: float) -> None:
    """The last row by the next layer's norm and projections, in float64."""
    layer = sample.model.model.language_model.layers[cut]
    x = sample.hidden.double().numpy()
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.input_layernorm.variance_epsilon)
    x = x * layer.input_layernorm.weight.detach().double().numpy()
    heads, kv, d = 4, 2, 8
    q = x @ layer.self_attn.q_proj.weight.detach().double().numpy().T
    k = x @ layer.self_attn.k_proj.weight.detach().double().numpy().T
    total = np.zeros(len(x))
    for h in range(heads):
        group = h // (heads // kv)
        qh = rotate(q[:, h * d : (h + 1) * d], sample.places)
        kh = rotate(k[:, group * d : (group + 1) * d], sample.places)
        logits = kh @ qh[-1] / math.sqrt(d)
        row = np.exp(logits - logits.max())
        total += row / row.sum() / heads
    sample.drop(best({name: total[i] for name, i in sample.visual.items()}, share(ratio, N)), renumber=True)


def dart(sample: Sample, cut: int, ratio: float, pivots: int) -> None:
    x = {name: sample.hidden[i].double().numpy() for name, i in sample.visual.items()}
    longest = sorted(x, key=lambda name: -np.linalg.norm(x[name]))[:pivots]
    others = {n: -max(cosine(x[n], x[p]) for p in longest) for n in x if n not in longest}
    count = share(ratio, N)
    sample.drop(set(longest[:count]) | best(others, count - len(longest[:count])))


TABLES = ((300, 200, 110), (303, 110, 36), (238, 48, 26), (66, 30, 17))


def sparsevlm_shares(keep: float) -> list[float]:
    """The hand table whose end is nearest, stretched in the exponent until it ends at ``keep``."""
    table = min(TABLES, key=lambda t: abs(math.log(t[-1] / 576 / keep)))
    return [keep ** (math.log(n / 576) / math.log(table[-1] / 576)) for n in table]


def raters(sample: Sample) -> list[int]:
    first = sample.ids.index(90)
    words = [i for i, token in enumerate(sample.ids) if token != 90 and i > first]
    visual = [i for i, token in enumerate(sample.ids) if token == 90]
    r = dict.fromkeys(words, 0.0)
    for v in visual:
        logits = [sample.embeds[v] @ sample.embeds[w] for w in words]
        weights = [math.exp(x - max(logits)) for x in logits]
        for w, weight in zip(words, weights, strict=True):
            r[w] += weight / sum(weights) / len(visual)
    return [w for w in words if r[w] > sum(r.values()) / len(r)]


def sparsevlm(
    sample: Sample, cut: int, ratio: float, variant: str = "code", recycles: bool = True, on_top: bool = False,
    rank_rule: bool = False,
) -> None:  # fmt: skip
    seen = sample.seen[cut - 1]
    chosen = [w - len(sample.ids) + len(seen.names) for w in raters(sample)]
    matrix = seen.attention.mean(0)
    scores = received(matrix, seen, chosen)
    count, n = share(ratio, N), len(scores)
    count = min(count, n)
    if rank_rule:
        columns = [i for i, name in enumerate(seen.names) if name is not None]
        rank = np.linalg.matrix_rank(matrix[np.ix_(chosen, columns)].astype(np.float32))
        count = n - max(0, min(n - 1, round((1 - count / n) * (n - rank))))
    selected, more = count, 0
    if recycles and count < n:
        more = clusters(n - count)
        if not on_top:
            fits = [s for s in range(1, count + 1) if s + min(clusters(n - s), count // 2) <= count]
            selected, more = max(fits), count - max(fits)
    keep = best(scores, selected)
    x = {name: sample.hidden[i].double().numpy() for name, i in sample.visual.items() if name not in keep}
    added = recycle(x, {name: scores[name] for name in x}, more, variant == "code") if more else {}
    sample.drop(keep, added, renumber=recycles)


def steps(keep: float, count: int) -> list[float]:
    return [keep ** ((i + 1) / count) for i in range(count - 1)] + [keep]


def at(layers, shares, decide, **options):
    """The cuts of one method: ``decide`` at each layer with its share."""
    return {
        layer: lambda sample, cut, ratio=ratio: decide(sample, cut, ratio, **options)
        for layer, ratio in zip(layers, shares, strict=True)
    }


def rollout_cuts(keep: float):
    return {3: lambda sample, cut: ivtp_rollout(sample, cut, keep, 0)}


def swap(name: str, kind: str, part: str, **options):
    return lambda keep: prunekit.method(name, keep_ratio=keep, **{kind: prunekit.create(kind, part, **options)})


def plain(name: str, variant: str | None = None):
    return lambda keep: prunekit.method(name, keep_ratio=keep, variant=variant)


SPARSE = (1, 2, 4)  # after layers 2, 6, 15 of 32, in a decoder of 6
CASES = {
    "ivtp": (plain("ivtp"), lambda k: at((2, 3), steps(k, 2), ivtp)),
    "ivtp_rollout": (plain("ivtp_rollout"), rollout_cuts),
    "fastv code": (plain("fastv"), lambda k: at((2,), (k,), fastv, query="last", itself=True)),
    "fastv paper": (plain("fastv", "paper"), lambda k: at((2,), (k,), fastv, query="all", itself=False)),
    "fastv text": (
        swap("fastv", "scorer", "fastv", query="text"),
        lambda k: at((2,), (k,), fastv, query="text", itself=True),
    ),
    "pyramiddrop": (plain("pyramiddrop"), lambda k: at((2, 3, 4), steps(k, 3), pyramiddrop)),
    "dart": (swap("dart", "scorer", "dart", pivots=3), lambda k: at((2,), (k,), dart, pivots=3)),
    "sparsevlm code": (plain("sparsevlm"), lambda k: at(SPARSE, sparsevlm_shares(k), sparsevlm)),
    "sparsevlm paper": (
        plain("sparsevlm", "paper"),
        lambda k: at(SPARSE, sparsevlm_shares(k), sparsevlm, variant="paper", rank_rule=True),
    ),
    "sparsevlm on top": (
        swap("sparsevlm", "reducer", "recycle", on_top=True),
        lambda k: at(SPARSE, sparsevlm_shares(k), sparsevlm, on_top=True),
    ),
    "sparsevlm later": (
        plain("sparsevlm_keep"),
        lambda k: at(SPARSE, sparsevlm_shares(k), sparsevlm, recycles=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "padding"), itertools.product(CASES, PADDINGS))
def test_kept_sets_and_logits_are_those_of_the_formula(case, padding):
    make, cuts = CASES[case]
    keep, seed = {"none": (0.5, 1), "left": (0.25, 2), "right": (0.375, 3)}[padding]
    model, batch = tiny_model("llava"), make_batch("llava", padding, seed=seed)
    with torch.no_grad(), make(keep)(model) as trace:
        logits = model(**batch.inputs).logits
    by_hand = tiny_model("llava", "eager")
    for b in range(3):
        sample = simulate.start(by_hand, batch, b)
        expected = simulate.run(sample, cuts(keep))
        assert len(trace.cuts) == len(sample.standing)
        for cut, standing in zip(trace.cuts, sample.standing, strict=True):
            assert set(cut.kept[b].nonzero()[:, 0].tolist()) == standing, (b, cut.layer)
        last = batch.mask[b].nonzero()[-1, 0]
        assert np.abs(logits[b, last].double().numpy() - expected).max() < TOLERANCE


@pytest.mark.parametrize("case", ["sparsevlm code", "sparsevlm on top", "sparsevlm later", "pyramiddrop", "dart"])
def test_generation_goes_on_from_what_stands(case):
    """Logits of three greedy steps on the pruned cache against the whole sequence by hand, cut as the prompt was."""
    make, cuts = CASES[case]
    model, batch = tiny_model("llava"), make_batch("llava", "left", seed=4)
    with torch.no_grad(), make(0.375)(model) as trace:
        out = model.generate(
            **batch.inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    tokens, layers = out.sequences[:, batch.ids.shape[1] :], [cut.layer for cut in trace.cuts]
    by_hand = tiny_model("llava", "eager")
    for b in range(3):
        prompt = simulate.start(by_hand, batch, b)
        simulate.run(prompt, cuts(0.375))
        for step in range(3):
            expected = simulate.go_on(batch, b, prompt, layers, tuple(tokens[b, :step].tolist()))
            assert np.abs(out.logits[step][b].double().numpy() - expected).max() < TOLERANCE, (b, step)


def pruner(size: int) -> prunekit.Pruner:
    groups = prunekit.create("schedule", "groups", size=size, within=4, vision=True)
    return prunekit.method("ivtp_rollout", keep_tokens=16, schedule=groups)


@pytest.mark.parametrize(("size", "counts"), [(1, [100, 69, 48, 36, 28, 21, 16]), (2, [48, 28, 16])])
def test_the_encoders_stage_keeps_the_cls_rows_best(size, counts):
    """The first cut inside the encoder against the product of its eager attention matrices."""
    loaded, method = load_model("mini", device="cpu"), pruner(size)
    inputs = Batcher(loaded).inputs(load("test", 3), method)
    with torch.no_grad(), method(loaded.model) as trace:
        loaded.model(**inputs)
    assert [int(cut.kept[0].sum()) for cut in trace.cuts] == counts
    eager = load_model("mini", device="cpu", attn="eager").model.model.vision_tower
    with torch.no_grad():
        attentions = eager(inputs["pixel_values"], output_attentions=True).attentions
    for b, kept in enumerate(trace.cuts[0].kept):
        rollout = np.eye(attentions[0].shape[-1])
        for block in attentions[:size]:
            rollout = (0.5 * np.eye(len(rollout)) + 0.5 * block[b].double().numpy().mean(0)) @ rollout
        best = np.argsort(-rollout[0, 1:], kind="stable")[: counts[0]]
        assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())


def test_an_encoder_too_shallow_for_a_group():
    with pytest.raises(prunekit.PrunekitError, match="no group of 4 blocks ends within the encoder's 3"):
        pruner(4).apply(load_model("mini", device="cpu").model)
