"""The parts of the methods on fresh random tensors, each against plain loops in float64."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import prunekit
import zoo
from prunekit.components.recycle import density_peaks
from prunekit.tensors.sequences import PromptLayout
from reference import hidden_keys
from simulate import clusters, recycle
from zoo.tiny import IMAGE, make_batch, tiny_model

SEEDS = range(6)


def ragged(g: torch.Generator, batch: int = 4, size: int = 60) -> torch.Tensor:
    """Bool [batch, size], each row another number of True at the front."""
    counts = torch.randint(size // 2, size + 1, (batch, 1), generator=g)
    return torch.arange(size) < counts


class TestRaters:
    def plain(self, x, visual, text):
        weights = []
        for v in visual:
            logits = np.array([x[v] @ x[t] for t in text])
            exp = np.exp(logits - logits.max())
            weights.append(exp / exp.sum())
        r = np.mean(weights, axis=0)
        return {t for t, value in zip(text, r, strict=True) if value > r.mean()}

    @pytest.mark.parametrize("seed", SEEDS)
    def test_against_loops(self, seed):
        g = torch.Generator().manual_seed(seed)
        batch = make_batch("llava", ("left", "right", "none")[seed % 3], seed=seed)
        layout = PromptLayout.build(batch.ids, batch.inputs["attention_mask"], batch.ids == IMAGE)
        x = torch.randn(*batch.ids.shape, 8, generator=g)
        got = prunekit.create("scorer", "sparsevlm").raters(x, layout)
        for b in range(3):
            visual = batch.visual[b].nonzero()[:, 0].tolist()
            text = [s for s in batch.mask[b].nonzero()[:, 0].tolist() if s not in visual and s > visual[0]]
            assert set(got[b].nonzero()[:, 0].tolist()) == self.plain(x[b].double().numpy(), visual, text)

    def test_all_are_raters_where_none_stands_out(self):
        batch = make_batch("llava")
        layout = PromptLayout.build(batch.ids, None, batch.ids == IMAGE)
        got = prunekit.create("scorer", "sparsevlm").raters(torch.zeros(*batch.ids.shape, 8), layout)
        assert torch.equal(got, layout.text)


class TestRankRule:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_against_numpy(self, seed):
        g = torch.Generator().manual_seed(seed)
        alive, keep, rows = torch.rand(5, 40, generator=g) < 0.9, [], torch.zeros(5, 12, 40)
        expected = []
        for b in range(5):
            true, queries, n = 1 + (seed + b) % 6, 8 + b % 4, int(alive[b].sum())
            low = torch.rand(queries, true, generator=g) @ torch.rand(true, n, generator=g)
            rows[b, :queries, alive[b]] = low
            keep.append(random.Random(5 * seed + b).randint(1, n - 1))
            goes = round((1 - keep[b] / n) * (n - np.linalg.matrix_rank(low.numpy())))
            expected.append(n - min(max(goes, 0), n - 1))
        got = prunekit.create("selector", "rank", variant="paper").counts(rows, torch.tensor(keep), alive)
        assert got.tolist() == expected

    def test_a_given_lambda(self):
        selector = prunekit.create("selector", "rank", variant="paper", scale=0.5)
        rows = torch.eye(4)[None] @ torch.rand(1, 4, 20)
        assert selector.counts(rows, torch.tensor([3]), torch.ones(1, 20, dtype=torch.bool)).tolist() == [12]

    def test_it_needs_rows(self):
        with pytest.raises(ValueError, match="scorer 'random' reads none"):
            prunekit.Pruner("random", "single", selector=prunekit.create("selector", "rank", variant="paper"))


class TestRecycle:
    @pytest.mark.parametrize(("seed", "variant"), [(s, ("code", "paper")[s % 2]) for s in SEEDS])
    def test_against_loops(self, seed, variant):
        g = torch.Generator().manual_seed(seed)
        tokens, alive = torch.randn(4, 120, 6, generator=g), ragged(g, size=120)
        kept = alive & (torch.rand(4, 120, generator=g) < 0.1)
        kept[:, 0] = True
        scores, sizes = torch.rand(4, 120, generator=g), torch.randint(1, 4, (4, 120), generator=g).float()
        gone = alive & ~kept
        count = torch.tensor([clusters(int(n)) for n in gone.sum(1)])
        assert int(count.max()) > 2
        reducer = prunekit.create("reducer", "recycle", variant=variant)
        options = dict(tokens=tokens, sizes=sizes, scores=scores, kept=kept, alive=alive, count=count)
        reduced, again = reducer.reduce(**options), reducer.reduce(**options)
        got, got_sizes, added = reduced.tokens, reduced.sizes, reduced.added
        assert torch.equal(got, again.tokens) and torch.equal(added, again.added)
        for b in range(4):
            places = gone[b].nonzero()[:, 0].tolist()
            x = {i: tokens[b, i].double().numpy() for i in places}
            made = recycle(x, {i: float(scores[b, i]) for i in places}, int(count[b]), variant == "code")
            assert set(added[b].nonzero()[:, 0].tolist()) == set(made)
            for i, value in made.items():
                assert np.abs(got[b, i].double().numpy() - value).max() < 1e-5 * max(1.0, np.abs(value).max())
            rest = ~added[b]
            assert torch.equal(got[b, rest], tokens[b, rest]) and torch.equal(got_sizes[b, rest], sizes[b, rest])
            pool = sorted(places, key=lambda i: -float(scores[b, i]))[: int(0.3 * len(places)) + 1]
            assert float(got_sizes[b, added[b]].sum()) == sum(float(sizes[b, i]) for i in pool)

    def test_equal_points_do_not_make_it_depend_on_chance(self):
        valid = torch.ones(1, 7, dtype=torch.bool)
        centres = density_peaks(torch.zeros(1, 7, 7), valid, torch.tensor([2]), torch.tensor([5]))
        assert centres[0].tolist() == [True, True, *[False] * 5]

    @pytest.mark.parametrize("standing", [2, 7, 64, 576])
    def test_clusters_are_part_of_the_budget(self, standing):
        reducer = prunekit.create("reducer", "recycle")
        for keep in range(1, standing):
            selected, more = reducer.split(None, standing, keep)
            assert selected + more == keep and selected >= 1 and 2 * more <= keep
            assert more <= clusters(standing - selected)

    @pytest.mark.parametrize(("label", "average"), [(192, 206.5), (128, 145.4), (64, 82.3)])
    def test_the_authors_counts_give_what_they_process_on_average(self, label, average):
        cuts = prunekit.create("schedule", "sparsevlm", label=label).cuts(32, {192: 110, 128: 36, 64: 17}[label] / 576)
        assert [cut.layer for cut in cuts] == [3, 7, 16]
        reducer, standing, total = prunekit.create("reducer", "recycle", on_top=True), 576, 0
        for before, cut in zip([0, 3, 7], cuts, strict=True):
            total += standing * (cut.layer - before)
            standing = sum(reducer.split(None, standing, round(cut.ratio * 576)))
        assert (total + 16 * standing) / 32 == pytest.approx(average, abs=0.06)


@dataclass
class Mark(prunekit.Reducer):
    """Adds the first and the last of the tokens that go, unchanged."""

    def split(self, view, standing, keep):
        return keep - 2, 2

    def reduce(self, *, tokens, kept, alive, **rest):
        gone = alive & ~kept
        order = gone.cumsum(1)
        return prunekit.Reduced(tokens, added=gone & ((order == 1) | (order == order[:, -1:])))


@pytest.mark.parametrize(("positions", "padding"), [("renumber", "none"), ("renumber", "left"), ("keep", "left")])
def test_added_tokens_stand_behind_those_of_their_image(positions, padding):
    """Two images with text between; the rows that enter the cut layer against a list made by hand."""
    model, batch = zoo.build("llava"), zoo.batch("llava", padding, variant="two_images")
    norm = model.get_decoder().layers[2].input_layernorm
    schedule, entered = prunekit.create("schedule", "one_shot", layer=2), []
    hook = norm.register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    pruner = prunekit.Pruner("random", "single", schedule, reducer=Mark(), keep_tokens=9, positions=positions)
    with torch.no_grad():
        model(**batch.inputs)
        with pruner(model) as trace:
            model(**batch.inputs)
    hook.remove()
    dense, pruned = entered
    cut = trace.cuts[0]
    assert cut.kept.sum(1).tolist() == [9, 9, 9] and cut.added.sum(1).tolist() == [2, 2, 2]
    real = batch.inputs["attention_mask"].bool()
    for b in range(3):
        names = {place: name for name, place in enumerate(batch.visual[b].nonzero()[:, 0].tolist())}
        expected, block = [], []
        for place in [*real[b].nonzero()[:, 0].tolist(), None]:
            if place in names:
                block += [place] if cut.kept[b, names[place]] else []
                continue
            if positions == "renumber":
                block.sort(key=lambda p: (bool(cut.added[b, names[p]]), p))
            expected += [*block, place]
            block = []
        expected.pop()
        assert torch.equal(pruned[b, -len(expected) :], dense[b, expected])


class TestDart:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_against_loops(self, seed):
        g = torch.Generator().manual_seed(seed)
        x, alive = torch.randn(4, 30, 5, generator=g), ragged(g, size=30)

        class View:
            hidden_states = x

            @staticmethod
            def visual(x):
                return x

        View.alive = alive
        scores = prunekit.create("scorer", "dart", pivots=4).score(View)
        for b in range(4):
            places = alive[b].nonzero()[:, 0].tolist()
            pivots = sorted(places, key=lambda i: -float(x[b, i].double().norm()))[:4]
            rest = {
                i: -max(float(torch.cosine_similarity(x[b, i].double(), x[b, p].double(), dim=0)) for p in pivots)
                for i in places
                if i not in pivots
            }
            expected = pivots + sorted(rest, key=lambda i: -rest[i])
            assert sorted(places, key=lambda i: -float(scores[b, i])) == expected


class TestOracle:
    def plain(self, boxes, rows, columns):
        found = []
        for r in range(rows):
            for c in range(columns):
                inside, near = 0.0, math.inf
                for x0, y0, x1, y1 in boxes:
                    w = max(0.0, min(x1, (c + 1) / columns) - max(x0, c / columns)) * columns
                    h = max(0.0, min(y1, (r + 1) / rows) - max(y0, r / rows)) * rows
                    inside = max(inside, w * h)
                    x, y = (c + 0.5) / columns, (r + 0.5) / rows
                    near = min(near, math.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1)))
                found.append(inside if inside > 0 else -near)
        return found

    @pytest.mark.parametrize("seed", SEEDS)
    def test_nearness_against_loops(self, seed):
        draw = random.Random(seed)
        boxes = []
        for _ in range(3):
            (x0, x1), (y0, y1) = (sorted((draw.random(), draw.random())) for _ in range(2))
            boxes.append((x0, y0, x1, y1))
        nearness = sys.modules[type(prunekit.create("scorer", "oracle")).__module__].nearness
        got = nearness(torch.tensor([boxes]), (4, 6))[0]
        assert np.abs(got.numpy() - np.array(self.plain(boxes, 4, 6))).max() < 1e-5

    def test_the_region_stays(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        regions = [[(0.0, 0.0, 0.5, 0.25)], [(0.5, 0.5, 1.0, 1.0)], [(0.0, 0.75, 0.25, 1.0), (0.75, 0.0, 1.0, 0.25)]]
        with torch.no_grad(), prunekit.method("oracle", keep_tokens=4)(model, regions=regions) as trace:
            model(**batch.inputs)
            kept = [set(row.nonzero()[:, 0].tolist()) for row in trace.cuts[0].kept]
            model.generate(**batch.inputs, max_new_tokens=2, num_beams=2)
            assert [set(row.nonzero()[:, 0].tolist()) for row in trace.cuts[0].kept[::2]] == kept
        assert {0, 1} <= kept[0] and kept[1] == {10, 11, 14, 15} and {3, 12} <= kept[2]

    def test_data_that_does_not_know_is_an_error_of_one_line(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        for regions, word in ((None, "does not know"), ([[(0, 0, 1, 1)], [], [(0, 0, 1, 1)]], "no region")):
            with (
                torch.no_grad(),
                prunekit.method("oracle")(model, regions=regions),
                pytest.raises(prunekit.PrunekitError, match=word) as caught,
            ):
                model(**batch.inputs)
            assert "\n" not in str(caught.value)


class TestFastV:
    def test_before_layer_0_it_drops_at_random_as_the_authors_code_does(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        first = prunekit.create("schedule", "one_shot", layer=0)
        with torch.no_grad(), prunekit.method("fastv", schedule=first)(model) as trace:
            model(**batch.inputs)
            kept = trace.cuts[0].kept
        with torch.no_grad(), prunekit.Pruner("random", "single", first)(model) as trace:
            model(**batch.inputs)
        assert torch.equal(trace.cuts[0].kept, kept) and kept.sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_looking_ahead_stores_nothing_twice(attn):
    """Running a layer again on the same cache would leave its keys there twice (20, 20, 40, 20)."""
    model, batch = tiny_model("llava", attn), make_batch("llava", "left")
    scorer = prunekit.create("scorer", "instruction", rows="last")
    schedule = prunekit.create("schedule", "progressive", layers=[2, 4])
    with torch.no_grad(), prunekit.Pruner(scorer, "ahead", schedule, keep_ratio=0.25)(model) as trace:
        out = model(**batch.inputs, use_cache=True)
    text = max((batch.mask & ~batch.visual).sum(1).tolist())
    size = batch.ids.shape[1]
    stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert stored == [size, size, text + 8, text + 8, text + 4, text + 4]
    gone = hidden_keys(batch, trace.cuts)
    assert set(gone) == {2, 4}


def test_ahead_equals_what_the_layer_itself_attends_to_where_nothing_goes():
    """keep_ratio=1: the row read ahead is the row that the layer then really computes."""
    model, batch = tiny_model("llava", "eager"), make_batch("llava", "right")
    scorer = prunekit.create("scorer", "instruction", rows="last")
    schedule = prunekit.create("schedule", "one_shot", layer=3)
    with torch.no_grad(), prunekit.Pruner(scorer, "ahead", schedule, keep_ratio=1.0)(model) as trace:
        model(**batch.inputs)
    with torch.no_grad():
        rows = model(**batch.inputs, output_attentions=True).attentions[3].mean(1)
    for b in range(3):
        last = batch.mask[b].nonzero()[-1, 0]
        assert (trace.cuts[0].scores[b] - rows[b, last, batch.visual[b]]).abs().max() < 1e-6


class TestSchedules:
    @pytest.mark.parametrize(
        ("depth", "layers"), [(32, [3, 7, 16]), (40, [3, 7, 16]), (24, [3, 5, 12]), (12, [2, 3, 7]), (4, [1, 2, 3])]
    )
    def test_sparsevlm(self, depth, layers):
        cuts = prunekit.create("schedule", "sparsevlm").cuts(depth, 0.25)
        assert [cut.layer for cut in cuts] == layers and cuts[-1].ratio == 0.25

    def test_hand_tables(self):
        cuts = prunekit.create("schedule", "sparsevlm", label=96).cuts(32, 26 / 576)
        assert [round(cut.ratio * 576) for cut in cuts] == [238, 48, 26]
        pruner = prunekit.method("sparsevlm", schedule=prunekit.create("schedule", "sparsevlm", label=64))
        assert pruner.keep_ratio == 17 / 576
        with pytest.raises(ValueError, match="100"):
            prunekit.create("schedule", "sparsevlm", label=100)

    def test_pyramiddrop_processes_270_of_576_on_average(self):
        pruner = prunekit.method("pyramiddrop")
        cuts = pruner.schedule.cuts(32, pruner.keep_ratio)
        assert [(c.layer, round(c.ratio * 576)) for c in cuts] == [(8, 288), (16, 144), (24, 72)]
        counts = [576, *(round(c.ratio * 576) for c in cuts)]
        assert sum(8 * n for n in counts) / 32 == 270

    @pytest.mark.parametrize(("depth", "layers"), [(32, [3, 6, 9, 12]), (12, [3, 6, 9]), (6, [3])])
    def test_groups(self, depth, layers):
        assert [c.layer for c in prunekit.create("schedule", "groups").cuts(depth, 0.1)] == layers

    def test_groups_of_a_decoder_that_is_too_shallow(self):
        with pytest.raises(ValueError, match="no group of 3 layers"):
            prunekit.create("schedule", "groups").cuts(3, 0.5)


class TestVariants:
    def test_of_a_method(self):
        paper = prunekit.method("sparsevlm", variant="paper")
        assert (paper.selector.variant, paper.reducer.variant) == ("paper", "paper")
        assert prunekit.method("sparsevlm").reducer.variant == "code"
        assert prunekit.method("fastv", variant="paper").scorer.query_set == "all"

    @pytest.mark.parametrize(
        ("name", "variant", "word"), [("dart", "paper", "no component"), ("fastv", "book", "book")]
    )
    def test_what_has_none(self, name, variant, word):
        with pytest.raises(ValueError, match=word):
            prunekit.method(name, variant=variant)
