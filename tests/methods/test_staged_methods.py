"""Methods that cut at the input and in the decoder against loops over lists; their decoder attention is the model's own
eager one, sample by sample on the tokens that the loops leave."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

import prunekit
import zoo
from hand_vision import cosine

CASES = [(name, padding) for name in ("llava", "qwen2_5_vl") for padding in ("left", "right", "none")]


class Sample:
    """One sample of a batch: its visual tokens, the encoder's attention to them, where they stand, and the prompt."""

    def __init__(self, name, view, batch, entered, b: int) -> None:
        own = view.alive[b].nonzero()[:, 0].tolist()
        self.name = name
        self.tokens = view.visual(view.hidden_states)[b, own]
        blocks = range(len(view.vision.tower.blocks))
        self.blocks = [view.vision.attention(block)[b, own].double().numpy() for block in blocks]
        self.read = view.vision.attention()[b, own].double().numpy()
        places = view.places
        self.media = [int(places.medium[b, n]) for n in own]
        self.places = [(int(places.row[b, n]), int(places.column[b, n])) for n in own]
        self.sizes = [(int(places.rows[b, n]), int(places.columns[b, n])) for n in own]
        real = batch.mask[b].bool()
        self.embeds, self.position = entered["inputs_embeds"][b, real], entered["position_ids"][..., b, real]
        self.visual = [i for i, visual in enumerate(batch.visual[b][real].tolist()) if visual]
        self.text = [i for i in range(len(self.embeds)) if i > self.visual[0] and i not in self.visual]

    def attention(self, layer: int, kept: dict[int, torch.Tensor]):
        """Head-mean attention of a decoder layer when only the tokens ``kept`` (number to embedding) entered it; which
        of its slots are text, and which visual."""
        slots = [i for i in range(len(self.embeds)) if i not in self.visual or self.visual.index(i) in kept]
        embeds = torch.stack(
            [kept[self.visual.index(i)].to(self.embeds) if i in self.visual else self.embeds[i] for i in slots]
        )
        with torch.no_grad():
            out = model_of(self.name, "eager").model.language_model(
                inputs_embeds=embeds[None], position_ids=self.position[..., None, slots], output_attentions=True,
                attention_mask=torch.ones(1, len(slots)),
                use_cache=False,
            )  # fmt: skip
        where = {n: slots.index(self.visual[n]) for n in kept}
        return out.attentions[layer][0].double().mean(0).numpy(), [slots.index(i) for i in self.text], where


class Reader(prunekit.Scorer):
    """Keeps the view of the last prefill."""

    uses_vision = uses_places = True

    def vision_blocks(self, blocks):
        return range(blocks)

    def score(self, view):
        self.view = view
        return view.alive.float()


@functools.cache
def model_of(name: str, attn: str = "sdpa"):
    return zoo.build(name, attn)


def samples_of(name: str, batch) -> list[Sample]:
    reader, entered, model = Reader(), {}, model_of(name)
    note = lambda module, args, kwargs: entered.update(kwargs)  # noqa: E731
    handle = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), prunekit.Pruner(reader, "single", "input", keep_ratio=0.5)(model):
        model(**batch.inputs)
    handle.remove()
    if entered.get("position_ids") is None:
        entered["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
    return [Sample(name, reader.view, batch, entered, b) for b in range(len(batch.ids))]


def run(name: str, batch, pruner):
    """Trace, logits of each sample's last token, and what entered layer 0."""
    model, caught = model_of(name), []
    layer = model.model.language_model.layers[0].input_layernorm
    with torch.no_grad(), pruner.replace(positions="keep")(model) as trace:  # M-RoPE knows no other
        handle = layer.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        logits = model(**batch.inputs).logits
        handle.remove()
    last = [int(row.nonzero()[-1]) for row in batch.mask]
    return trace, torch.stack([logits[b, i] for b, i in enumerate(last)]), caught[-1]


def kept(cut, b: int) -> list[int]:
    return cut.kept[b].nonzero()[:, 0].tolist()


def order(scores, among) -> list[int]:
    return sorted(among, key=lambda n: -scores[n])


def chosen_by_vscan(sample: Sample, keep: int, local: float, window: int, depth: float) -> list[int]:
    early = sample.blocks[max(round(depth * len(sample.blocks)) - 1, 0)]
    where = []
    for medium, at, size in zip(sample.media, sample.places, sample.sizes, strict=True):
        last = [max(length // window, 1) - 1 for length in size]
        where.append((medium, *(min(x // window, end) for x, end in zip(at, last, strict=True))))
    count, taken = int(keep * local), dict.fromkeys(where, 0)
    limit, near = math.ceil(count / len(taken)), []
    for n in order(early, range(len(early))):
        if len(near) < count and taken[where[n]] < limit:
            taken[where[n]] += 1
            near.append(n)
    return near + order(sample.read, [n for n in range(len(early)) if n not in near])[: keep - len(near)]


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize(
    ("local", "window", "depth", "ratio"), [(0.5, 2, 0.25, 0.2), (1.0, 3, 0.9, 0.1), (0.0, 6, 0.5, 0.25)]
)
def test_vscan(name, padding, local, window, depth, ratio):
    batch = zoo.batch(name, padding, seed=np.random.randint(1000))
    selector = prunekit.create("selector", "vscan", local=local, window=window, depth=depth)
    pruner = prunekit.method("vscan", selector=selector, keep_ratio=ratio)
    trace, _, entered = run(name, batch, pruner)
    assert [(cut.site, cut.layer) for cut in trace.cuts] == [("input", 0), ("decoder", 2)]
    for b, sample in enumerate(samples_of(name, batch)):
        total = len(sample.tokens)
        first = sorted(chosen_by_vscan(sample, max(1, round(3 * ratio * total)), local, window, depth))
        assert kept(trace.cuts[0], b) == first
        groups = {n: [sample.tokens[n]] for n in first}
        for n in range(total):
            if n not in groups:
                near = max(first, key=lambda m, n=n: cosine(*(sample.tokens[i].double().numpy() for i in (n, m))))
                groups[near].append(sample.tokens[n])
        merged = {n: torch.stack(group).mean(0) for n, group in groups.items()}
        for token in merged.values():
            assert (entered[b] - token).abs().amax(-1).min() < 1e-5
        attention, _, where = sample.attention(2, merged)
        scores = {n: attention[-1, slot] for n, slot in where.items()}
        assert kept(trace.cuts[1], b) == sorted(order(scores, first)[: max(1, round(ratio * total))])


def unlike(sample: Sample, keep: int) -> list[int]:
    """ToDRE's greedy choice."""
    points = sample.tokens.double().numpy()
    chosen = [order(sample.blocks[-1], range(len(points)))[0]]
    while len(chosen) < keep:
        sums = {n: sum(cosine(points[n], points[c]) for c in chosen) for n in range(len(points)) if n not in chosen}
        chosen.append(min(sums, key=sums.__getitem__))
    return chosen


def ratio_of(sample: Sample, layer: int, first: list[int]) -> float:
    """The larger share of attention between text and what is kept of the image, either way."""
    attention, text, where = sample.attention(layer, {n: sample.tokens[n] for n in first})
    visual = [*where.values()]
    sums = [
        sum(attention[i, j] for i in asks for j in seen) / sum(attention[i].sum() for i in asks)
        for asks, seen in ((text, visual), (visual, text))
    ]
    return max(sums)


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize("variant", ["plain", "two_images"])
@pytest.mark.parametrize(("keep", "depth", "cut"), [(0.3, 7 / 8, 3), (0.6, 0.5, 2)])
def test_todre(name, padding, variant, keep, depth, cut):
    batch = zoo.batch(name, padding, seed=np.random.randint(1000), variant=variant)
    samples, firsts, ratios = samples_of(name, batch), [], []
    for sample in samples:
        firsts.append(sorted(unlike(sample, max(1, round(keep * len(sample.tokens))))))
        ratios.append(ratio_of(sample, cut - 1, firsts[-1]))

    def at(threshold: float):
        selector = prunekit.create("selector", "todre", threshold=threshold)
        schedule = prunekit.create("schedule", "todre", keep=keep, depth=depth)
        return run(name, batch, prunekit.method("todre", selector=selector, schedule=schedule))

    trace, logits, _ = at((min(ratios) + max(ratios)) / 2)
    assert [(c.site, c.layer) for c in trace.cuts] == [("input", 0), ("decoder", cut)]
    stays = [ratio >= (min(ratios) + max(ratios)) / 2 for ratio in ratios]
    assert len(set(stays)) == 2
    for b, first in enumerate(firsts):
        assert kept(trace.cuts[0], b) == first
        assert kept(trace.cuts[1], b) == (first if stays[b] else [])
        assert abs(float(trace.cuts[1].scores[b, first[0]]) - ratios[b]) < 1e-5
    none, every = at(1.0)[1], at(0.0)[1]
    for b, stay in enumerate(stays):  # a sample's neighbours have no say
        assert (logits[b] - (every if stay else none)[b]).abs().max() < 1e-4
        assert (every[b] - none[b]).abs().max() > 1e-3


def test_todre_begins_in_the_thumbnail():
    """Of tiles with a small copy of the picture beside them the first pick is one of the copy."""
    batch, reader, model = zoo.batch("llava_next", "left", seed=3), Reader(), zoo.build("llava_next")
    with torch.no_grad(), prunekit.Pruner(reader, "single", "input", keep_ratio=0.5)(model):
        model(**batch.inputs)
    thumbnail, attention = reader.view.places.thumbnail, reader.view.vision.attention(-1)
    schedule = prunekit.create("schedule", "todre", keep=1e-9)
    with torch.no_grad(), prunekit.method("todre", schedule=schedule, positions="keep")(model) as trace:
        model(**batch.inputs)
    for b in range(len(batch.ids)):
        (first,) = kept(trace.cuts[0], b)
        assert first == max(thumbnail[b].nonzero()[:, 0].tolist(), key=lambda n: float(attention[b, n]))


def test_a_budget_for_todre_chooses_the_share_at_the_input():
    pruner = prunekit.method("todre", budget="flops:0.3", positions="keep")
    handle = pruner.apply(model_of("llava"))
    handle.remove()
    with pytest.raises(prunekit.PrunekitError, match=r"keep_ratio=0\.5 cannot be met"):
        prunekit.method("todre", keep_ratio=0.5)


@pytest.mark.parametrize(
    ("kind", "part", "options", "message"),
    [
        ("selector", "vscan", {"local": 1.5}, r"selector.local must lie in \[0, 1\]"),
        ("selector", "vscan", {"window": 0}, "selector.window must be at least 1"),
        ("selector", "vscan", {"depth": 0.0}, r"selector.depth must lie in \(0, 1\]"),
        ("selector", "todre", {"threshold": -0.1}, r"selector.threshold must lie in \[0, 1\]"),
        ("schedule", "todre", {"keep": 0.0}, r"schedule.keep must lie in \(0, 1\]"),
        ("schedule", "todre", {"depth": 1.0}, r"schedule.depth must lie in \(0, 1\)"),
    ],
)
def test_options_out_of_range(kind, part, options, message):
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.create(kind, part, **options)


@pytest.mark.parametrize("method", ["vscan", "todre"])
def test_a_family_whose_encoder_is_not_known_is_refused_in_one_line(method):
    with pytest.raises(prunekit.PrunekitError, match="is not known") as caught:
        prunekit.method(method).apply(zoo.build("ovis2"))
    assert "\n" not in str(caught.value)
