"""AutoPrune against loops over lists, and schedules whose counts depend on the sample."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch

import prunekit
import zoo
from prunekit.engine.adaptive import scaled
from prunekit.families import make_family


def eager_rows(name: str, batch, layer: int):
    """The attention of a layer's heads, sample by sample, [B, H, S, S]."""
    with torch.no_grad():
        return zoo.build(name, "eager")(**batch.inputs, output_attentions=True).attentions[layer].double()


def information(rows, words: list[int], visual: list[int]) -> float:
    heads = []
    for head in rows:
        shares = [[float(head[w, v]) for v in visual] for w in words]
        shares = [[p / sum(row) for p in row] for row in shares]
        mean = [sum(row[v] for row in shares) / len(words) for v in range(len(visual))]
        pairs = ((p, m) for row in shares for p, m in zip(row, mean, strict=True) if p > 0)
        heads.append(sum(p / len(words) * math.log(p / m) for p, m in pairs))
    return sum(heads) / len(heads)


def curve(layer: int, depth: int, k: float) -> float:
    return 1 / (1 + math.exp(k * (32 * layer / depth - 14.9 - k)))


@pytest.mark.parametrize("padding", ["left", "right", "none"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(("gain", "ratio"), [(0.2, 0.2), (3.0, 0.4)])
def test_each_sample_falls_by_what_its_question_says(name, padding, gain, ratio):
    batch, model = zoo.batch(name, padding), zoo.build(name)
    depth = make_family(model).depth
    schedule = prunekit.create("schedule", "autoprune", depths=[1.0 / depth, 2.0 / depth, 3.0 / depth], gain=gain)
    with torch.no_grad(), prunekit.method("autoprune", schedule=schedule, keep_ratio=ratio)(model) as trace:
        model(**batch.inputs)
    rows, runs = eager_rows(name, batch, 0), [1, 1, depth - 3]
    for b in range(len(batch.ids)):
        visual = batch.visual[b].nonzero()[:, 0].tolist()
        words = [s for s in range(visual[0] + 1, batch.ids.shape[1]) if batch.mask[b, s] and not batch.visual[b, s]]
        k = max(0.4 - gain * information(rows[b], words, visual), 0)
        shares = [curve(layer, depth, k) for layer in (1, 2, 3)]
        nominal = [curve(layer, depth, 0.4) for layer in (1, 2, 3)]
        planned = [max(1, round(min(1.0, ratio * s / nominal[-1]) * len(visual))) for s in nominal]
        total = sum(n * count for n, count in zip(runs, planned, strict=True))
        tried = {}
        for step in range(5000):
            factor = 1.004**step / 1000
            counts = [min(len(visual), max(1, round(factor * s * len(visual)))) for s in shares]
            tried.setdefault(tuple(counts), abs(sum(n * c for n, c in zip(runs, counts, strict=True)) - total))
        pair = tuple(int(cut.kept[b].sum()) for cut in trace.cuts)
        assert tried[pair] == min(tried.values())
        assert all(not bool((b2.kept & ~a.kept).any()) for a, b2 in zip(trace.cuts, trace.cuts[1:], strict=False))


@pytest.mark.parametrize("seed", range(20))
def test_counts_meet_a_total_by_bisection(seed):
    """Against trying factors in small steps."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    visual, runs = draw(5, 200), [draw(1, 9) for _ in range(draw(1, 5))]
    shares = sorted((float(x) for x in torch.rand(len(runs), generator=generator) + 0.05), reverse=True)
    total = draw(sum(runs), visual * sum(runs) + 1)
    spent = lambda counts: sum(n * c for n, c in zip(runs, counts, strict=True))  # noqa: E731
    best = min(
        abs(spent([min(visual, max(1, round(step / 500 * s * visual))) for s in shares]) - total)
        for step in range(12000)
    )
    assert abs(spent(scaled(shares, runs, total, visual)) - total) <= best


@dataclass
class Odd(prunekit.Schedule):
    """Shares that cannot be."""

    kind: str = "rising"

    adapts_counts = True

    def cuts(self, depth, keep_ratio):
        return (prunekit.Cut(1, keep_ratio**0.5), prunekit.Cut(2, keep_ratio))

    def shares(self, view, layers, depth):
        if self.kind == "shape":
            return torch.ones(len(view.alive), 1)
        return torch.tensor([[0.5, 0.6] if self.kind == "rising" else [float("nan"), 0.1]] * len(view.alive))


@pytest.mark.parametrize(("kind", "message"), [("rising", "never rise"), ("nan", "finite"), ("shape", "Odd.shares")])
def test_shares_that_cannot_be_are_refused(kind, message):
    model, batch = zoo.build("llava"), zoo.batch("llava")
    pruner = prunekit.Pruner("instruction", "single", Odd(kind), keep_ratio=0.3)
    with torch.no_grad(), pruner(model), pytest.raises(prunekit.PrunekitError, match=message):
        model(**batch.inputs)


def test_what_says_nothing_about_a_sample_is_refused():
    model = zoo.build("llava")
    with pytest.raises(prunekit.PrunekitError, match="counts by the attention before its first cut; scorer 'random'"):
        prunekit.Pruner("random", "single", Odd()).apply(model)
    with pytest.raises(prunekit.PrunekitError, match="both say how many stay"):
        prunekit.Pruner("instruction", "single", Odd(), prunekit.create("selector", "rank", variant="paper")).apply(
            model
        )
    with pytest.raises(prunekit.PrunekitError, match="must be at least 0"):
        prunekit.create("schedule", "autoprune", gain=-1.0)
    assert dataclasses.asdict(prunekit.create("schedule", "autoprune"))["middle"] == 14.9
