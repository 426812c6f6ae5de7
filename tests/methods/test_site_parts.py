"""Parts of the methods before the decoder on fresh random tensors, against plain loops; and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import prunekit
from hand_vision import best, cosine, determinants, farthest, thin_out
from prunekit.cost import layer_macs


class Seen:
    """A view of nothing but tokens."""

    site = "decoder"

    def __init__(self, tokens: torch.Tensor, alive: torch.Tensor, **vision) -> None:
        self.alive = alive
        self.hidden_states, self.vision = tokens, type("Vision", (), {"features": tokens, **vision})

    def visual(self, x: torch.Tensor) -> torch.Tensor:
        return x


def ragged(seed: int, batch: int = 4, most: int = 12):
    """Tokens [B, N, D], scores [B, N], and for each sample which stand and how many are to stay."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, most, 5, generator=g, dtype=torch.float64)
    scores = torch.rand(batch, most, generator=g, dtype=torch.float64)
    alive = torch.rand(batch, most, generator=g) < 0.8
    alive[:, 0] = True
    keep = torch.tensor([int(torch.randint(1, int(a.sum()) + 1, (1,), generator=g)) for a in alive])
    return tokens, scores, alive, keep


def check(selector: str, seed: int, expected, **options) -> None:
    tokens, scores, alive, keep = ragged(seed)
    kept = prunekit.create("selector", selector, **options).select(Seen(tokens, alive), scores, keep)
    for b in range(len(tokens)):
        places = alive[b].nonzero()[:, 0].tolist()
        wanted = expected(tokens[b, places].numpy(), scores[b, places].tolist(), int(keep[b]))
        assert kept[b].nonzero()[:, 0].tolist() == sorted(places[i] for i in wanted)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_farthest_points(seed):
    """Samples of other numbers of tokens, some of them gone, side by side."""

    def expected(tokens, scores, keep):
        return farthest(tokens, keep) if len(tokens) > 1 else [0]

    check("maxmin", seed, expected)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_greedy_determinants(seed):
    """Up to the rank of the kernel (5): beyond it every determinant is nothing but rounding."""
    tokens, scores, alive, keep = ragged(seed)
    keep = keep.clamp(max=4)
    kept = prunekit.create("selector", "dpp").select(Seen(tokens, alive), scores, keep)
    for b in range(len(tokens)):
        places = alive[b].nonzero()[:, 0].tolist()
        x, q = tokens[b, places].numpy(), scores[b, places].tolist()
        kernel = np.array([[q[i] * cosine(x[i], x[j]) * q[j] for j in range(len(x))] for i in range(len(x))])
        wanted = determinants(kernel, int(keep[b]))
        assert kept[b].nonzero()[:, 0].tolist() == sorted(places[i] for i in wanted)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), step=st.integers(1, 9), important=st.floats(0, 1))
def test_thinning_out(seed, step, important):
    def expected(tokens, scores, keep):
        return thin_out(tokens, scores, keep, important, step)

    check("vispruner", seed, expected, step=step, important=important)


@settings(max_examples=25)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), share=st.integers(1, 900))
def test_the_nearest_grid(rows, columns, share):
    candidates = [(a, min(columns, max(1, round(a * columns / rows)))) for a in range(1, rows + 1)]
    high, wide = prunekit.ops.cell_grid(torch.tensor([rows]), torch.tensor([columns]), torch.tensor([share]))
    assert abs(int(high * wide) - share) == min(abs(a * b - share) for a, b in [(1, 1), *candidates])
    assert 1 <= int(high) <= rows and 1 <= int(wide) <= columns


def test_outliers_of_several_images_are_found_in_each():
    scores = torch.rand(1, 20, generator=torch.Generator().manual_seed(0))
    scores[0, 3], scores[0, 15] = 9.0, 4.0  # of both together only the first would stand out so far
    image = torch.tensor([[0] * 10 + [1] * 10])
    view = Seen(torch.zeros(1, 20, 2), torch.ones(1, 20, dtype=torch.bool), image=image)
    kept = prunekit.create("selector", "outliers", fence=3.0).select(view, scores, torch.tensor([5]))
    assert kept[0].nonzero()[:, 0].tolist() == [3, 15]


def test_a_budget_of_spread_outliers_is_met():
    scores = torch.rand(2, 30, generator=torch.Generator().manual_seed(1))
    selector = prunekit.create("selector", "outliers", adaptive=False, spread=True)
    view = Seen(torch.zeros(2, 30, 2), torch.ones(2, 30, dtype=torch.bool), image=torch.zeros(2, 30, dtype=torch.long))
    kept = selector.select(view, scores, torch.tensor([9, 4]))
    assert kept.sum(1).tolist() == [9, 4]
    for b, half in ((0, 5), (1, 2)):
        assert set(best(scores[b].tolist(), half)) <= set(kept[b].nonzero()[:, 0].tolist())


def test_the_same_twice():
    tokens, scores, alive, keep = ragged(3)
    for name in ("maxmin", "dpp", "vispruner"):
        select = prunekit.create("selector", name).select
        once, again = (select(Seen(tokens, alive), scores, keep) for _ in range(2))
        assert torch.equal(once, again) and once.sum(1).tolist() == keep.tolist()


@pytest.mark.parametrize("name", ["maxmin", "dpp", "vispruner"])
def test_diversity_over_2880_tokens_costs_less_than_a_twentieth_of_a_7b_prefill(name):
    """As torch counts multiply-accumulates, against the gated formula of 32 layers of 4096 and 11008."""
    tokens = torch.randn(1, 2880, 1024 if name == "vispruner" else 4096)
    scores, alive = torch.rand(1, 2880), torch.ones(1, 2880, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prunekit.create("selector", name).select(Seen(tokens, alive), scores, torch.tensor([320]))
    dense = 2 * 32 * float(layer_macs(torch.tensor(2880), 4096, 11008))
    assert 0 < counter.get_total_flops() < 0.05 * dense
