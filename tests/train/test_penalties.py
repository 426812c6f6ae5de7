"""The penalties against plain loops, and what each can be gamed by."""

from __future__ import annotations

import math

import pytest
import torch

import prunekit
from prunekit.data.mini import load
from prunekit.evaluation.batches import Batcher
from prunekit.train.measure import score_spread
from prunekit.train.penalties import PENALTIES, entropy, hoyer, l1, penalty
from prunekit.views.trace import CutRecord
from training import pruner, tiny


def plain(name: str, s: list[float]) -> float:
    s = [abs(x) for x in s]
    if name == "l1":
        return sum(s)
    if name == "entropy":
        p = [x / sum(s) for x in s]
        return -sum(x * math.log(x) for x in p if x > 0) / math.log(len(s))
    ratio = sum(s) / math.sqrt(sum(x * x for x in s))
    return (ratio - 1) / (math.sqrt(len(s)) - 1)


@pytest.mark.parametrize("name", PENALTIES)
def test_by_a_loop(name):
    g = torch.Generator().manual_seed(7)
    scores, alive = torch.randn(5, 12, generator=g), torch.rand(5, 12, generator=g) < 0.7
    found = PENALTIES[name](scores.masked_fill(~alive, torch.nan), alive)
    for row in range(5):
        assert float(found[row]) == pytest.approx(plain(name, scores[row][alive[row]].tolist()), rel=1e-5)


def test_the_mean_is_over_samples_and_cuts():
    g = torch.Generator().manual_seed(8)
    cuts = []
    for gone in (0, 4):
        scores = torch.rand(3, 9, generator=g)
        scores[:, :gone] = torch.nan
        cuts.append(CutRecord("decoder", 1, scores.isfinite(), scores))
    for name in PENALTIES:
        each = [plain(name, [x for x in row if not math.isnan(x)]) for cut in cuts for row in cut.scores.tolist()]
        assert float(penalty(name, cuts)) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_only_l1_falls_with_the_scale_and_only_the_others_with_the_spread():
    alive = torch.ones(1, 16, dtype=torch.bool)
    flat, peak = torch.full((1, 16), 1 / 16), torch.eye(16)[:1] * 1.0
    assert l1(flat, alive) == l1(peak, alive) and l1(flat / 2, alive) == l1(flat, alive) / 2
    for function in (entropy, hoyer):
        assert function(flat, alive) == pytest.approx(1, abs=1e-5) and function(peak, alive).abs() < 1e-5
        assert function(flat / 2, alive) == pytest.approx(float(function(flat, alive)), abs=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_finite_where_scores_are_gone_or_zero(name):
    scores = torch.tensor([[0.5, 0.0, torch.nan, 0.2]], requires_grad=True)
    alive = torch.tensor([[True, True, False, True]])
    PENALTIES[name](scores, alive).sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad[0, 2] == 0


def test_the_spread_is_that_of_each_samples_scores():
    made, used, shown = tiny(), pruner(), load("validation", 4)
    found = score_spread(Batcher(made), shown, used, batch_size=2)
    told = {"on_kept": [], "l1": [], "entropy": []}
    for example in shown:
        inputs = Batcher(made).inputs([example])
        with torch.no_grad(), used(made.model) as trace:
            made.model(**inputs)
        for cut in trace.cuts:
            s, kept = cut.scores[0], cut.kept[0]
            told["on_kept"].append(float(s[kept].sum() / s[~s.isnan()].sum()))
            for name in ("l1", "entropy"):
                told[name].append(plain(name, [x for x in s.tolist() if not math.isnan(x)]))
    for name, values in told.items():
        assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert isinstance(used, prunekit.Pruner)
