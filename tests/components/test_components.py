"""Registry, schedules, selectors, reducers and cost, each against plain arithmetic."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import prunekit
from prunekit.components.schedules import cumulative_shares
from prunekit.cost import layer_macs
from prunekit.registry import Registry
from reference import compare, eager_attentions, hidden_keys, scores
from zoo.tiny import DEPTH, FAMILIES, PADDINGS, make_batch, tiny_model


class TestRegistry:
    def test_a_name_twice_is_an_error(self):
        registry = Registry(("scorer",))

        @registry.register("scorer", "mine")
        @dataclass
        class Mine(prunekit.Scorer):
            pass

        with pytest.raises(ValueError, match="'mine' is already registered"):
            registry.register("scorer", "mine")(Mine)

    def test_only_dataclasses(self):
        with pytest.raises(ValueError, match="must be a dataclass"):
            Registry(("scorer",)).register("scorer", "plain")(type("Plain", (), {}))

    def test_users_files_are_read_and_broken_ones_named_and_skipped(self, tmp_path, monkeypatch):
        (tmp_path / "good_one.py").write_text(
            "import prunekit\nfrom dataclasses import dataclass\n"
            "@prunekit.register('scorer', 'from_a_file')\n@dataclass\nclass A(prunekit.Scorer):\n"
            "    alpha: float = 1.0\n"
        )
        (tmp_path / "broken_one.py").write_text("import no_such_module\n")
        (tmp_path / "second_random.py").write_text(
            "import prunekit\nfrom dataclasses import dataclass\n"
            "@prunekit.register('scorer', 'random')\n@dataclass\nclass B(prunekit.Scorer):\n    pass\n"
        )
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        with pytest.warns(UserWarning) as caught:
            assert "from_a_file" in prunekit.available("scorer")
        said = " ".join(str(w.message) for w in caught)
        assert "broken_one.py" in said and "no_such_module" in said
        assert "second_random.py" in said and "already registered" in said
        assert prunekit.create("scorer", "from_a_file", alpha=2.0).alpha == 2.0
        with pytest.raises(ValueError, match="Did you mean 'alpha'"):
            prunekit.create("scorer", "from_a_file", alhpa=2.0)

    def test_a_folder_that_is_not_there_is_named(self, monkeypatch):
        monkeypatch.setenv("PRUNEKIT_METHODS", "/no/such/folder")
        with pytest.raises(ValueError, match="/no/such/folder"):
            prunekit.available("scorer")


class TestSchedules:
    def test_default_layers(self):
        cuts = prunekit.create("schedule", "one_shot").cuts(32, 0.5)
        assert [(c.layer, c.ratio) for c in cuts] == [(8, 0.5)]
        cuts = prunekit.create("schedule", "progressive").cuts(12, 0.25)
        assert [(c.layer, c.ratio) for c in cuts] == [(3, 0.5), (6, 0.25)]

    @given(depth=st.integers(2, 80), fraction=st.floats(0.01, 0.99))
    def test_a_fraction_of_the_depth(self, depth, fraction):
        expected = max(1, round(fraction * depth))
        schedule = prunekit.create("schedule", "one_shot", depth=fraction)
        if expected < depth:
            assert schedule.cuts(depth, 0.5)[0].layer == expected
        else:
            with pytest.raises(ValueError, match="not in 0"):
                schedule.cuts(depth, 0.5)

    @given(keep=st.floats(0.01, 1.0), count=st.integers(1, 5))
    def test_equal_steps(self, keep, count):
        shares = cumulative_shares(None, count, keep)
        assert shares[-1] == keep
        steps = [b / a for a, b in zip([1.0, *shares], shares, strict=False)]
        assert steps == pytest.approx([steps[0]] * count)

    def test_given_ratios(self):
        assert cumulative_shares([0.5, 0.5], 2, 0.25) == [0.5, 0.25]
        stretched = cumulative_shares([0.5, 0.5], 2, 0.04)
        assert stretched == pytest.approx([0.2, 0.04])


class TestKeepCounts:
    @settings(max_examples=25)
    @given(ratio=st.floats(0.01, 1.0), layers=st.sampled_from([[2], [1, 3], [1, 2, 5]]))
    def test_the_last_cut_leaves_exactly_the_ratio(self, ratio, layers):
        model, batch = tiny_model("llava"), make_batch("llava")
        schedule = prunekit.create("schedule", "progressive", layers=layers)
        with torch.no_grad(), prunekit.Pruner("random", "single", schedule, keep_ratio=ratio)(model) as trace:
            model(**batch.inputs)
        assert trace.cuts[-1].kept.sum(1).tolist() == [max(1, round(ratio * 16))] * 3
        for earlier, later in zip(trace.cuts, trace.cuts[1:], strict=False):
            assert not (later.kept & ~earlier.kept).any()

    def test_keep_tokens(self):
        model, batch = tiny_model("qwen2_vl"), make_batch("qwen2_vl", "left")
        with torch.no_grad(), prunekit.Pruner(keep_tokens=6)(model) as trace:
            model(**batch.inputs)
        assert trace.cuts[-1].kept.sum(1).tolist() == [min(6, n) for n in batch.visual.sum(1).tolist()]


class TestTopK:
    def plain(self, scores, keep, alive):
        """Sort by descending score, earlier first among equals, and take ``keep``."""
        chosen = []
        for row, k, standing in zip(scores.tolist(), keep.tolist(), alive.tolist(), strict=True):
            order = sorted((i for i, a in enumerate(standing) if a), key=lambda i: (-row[i], i))
            chosen.append([i in order[:k] for i in range(len(row))])
        return torch.tensor(chosen)

    @pytest.mark.parametrize("seed", range(20))
    def test_against_sorting(self, seed):
        g = torch.Generator().manual_seed(seed)
        scores = torch.randint(0, 4, (5, 12), generator=g).float()  # many ties
        alive = torch.rand(5, 12, generator=g) < 0.8
        keep = torch.tensor([random.Random(seed * 5 + b).randint(0, int(alive[b].sum())) for b in range(5)])
        got = prunekit.create("selector", "topk").select(Standing(alive), scores, keep)
        assert torch.equal(got, self.plain(scores, keep, alive))

    def test_stride_is_exact_and_even(self):
        stride = prunekit.create("selector", "stride")
        for n, k in [(16, 4), (16, 5), (144, 36), (7, 7), (9, 1)]:
            got = stride.select(Standing(torch.ones(1, n, dtype=torch.bool)), torch.zeros(1, n), torch.tensor([k]))
            places = got[0].nonzero()[:, 0]
            assert len(places) == k
            if k > 1:
                assert int(places.diff().max() - places.diff().min()) <= 1


@dataclass
class Standing:
    """A view of nothing but what stands."""

    alive: torch.Tensor


class TestMerge:
    def plain(self, tokens, sizes, kept, alive):
        merged, total = tokens.double().clone(), sizes.double().clone()
        for b in range(tokens.shape[0]):
            groups = {i: [i] for i in range(tokens.shape[1]) if kept[b, i]}
            for j in range(tokens.shape[1]):
                if alive[b, j] and not kept[b, j]:
                    near = max(groups, key=lambda i: float(torch.cosine_similarity(tokens[b, j], tokens[b, i], dim=0)))
                    groups[near].append(j)
            for i, members in groups.items():
                weight = sum(float(sizes[b, m]) for m in members)
                merged[b, i] = sum(tokens[b, m].double() * float(sizes[b, m]) for m in members) / weight
                total[b, i] = weight
        return merged, total

    @pytest.mark.parametrize("seed", range(8))
    def test_against_loops(self, seed):
        g = torch.Generator().manual_seed(seed)
        tokens, sizes = torch.randn(3, 10, 6, generator=g), torch.randint(1, 4, (3, 10), generator=g).float()
        alive = torch.rand(3, 10, generator=g) < 0.9
        kept = alive & (torch.rand(3, 10, generator=g) < 0.4)
        kept[:, 0] = alive[:, 0] = True
        merged = prunekit.create("reducer", "merge").reduce(tokens=tokens, sizes=sizes, kept=kept, alive=alive)
        got, got_sizes = merged.tokens, merged.sizes
        want, want_sizes = self.plain(tokens, sizes, kept, alive)
        assert (got - want)[kept].abs().max() < 1e-5
        assert torch.equal(got_sizes[kept].double(), want_sizes[kept])

    def test_in_a_model_the_kept_tokens_carry_the_mean(self):
        """One cut to a single token: its hidden state entering the layer is the mean of all visual tokens."""
        model, batch = tiny_model("llava"), make_batch("llava")
        schedule = prunekit.create("schedule", "one_shot", layer=2)
        entering = {}
        layer = model.get_decoder().layers[2]
        with torch.no_grad():
            dense = layer.register_forward_pre_hook(lambda m, a: entering.update(dense=a[0]))
            model(**batch.inputs)
            dense.remove()
            with prunekit.Pruner("random", "single", schedule, reducer="merge", keep_tokens=1)(model) as trace:
                pruned = layer.input_layernorm.register_forward_pre_hook(lambda m, a: entering.update(pruned=a[0]))
                model(**batch.inputs)
                pruned.remove()
        assert trace.tokens_per_layer[2].tolist() == [11, 11, 11]
        for b in range(3):
            assert (entering["pruned"][b, 3] - entering["dense"][b][batch.visual[b]].mean(0)).abs().max() < 1e-5


class TestLearnedWeights:
    def file(self, folder, **tensors):
        save_file(tensors, str(folder / "w.safetensors"))
        return prunekit.create("fusion", "learned", weights=str(folder / "w.safetensors"))

    def test_another_depth_is_refused_by_name(self, tmp_path):
        pruner = prunekit.Pruner(fusion=self.file(tmp_path, weights=torch.ones(5)))
        with pytest.raises(ValueError, match=r"w\.safetensors' is for 5 layers, the decoder has 6"):
            pruner.apply(tiny_model("llava"))

    @pytest.mark.parametrize(
        ("tensors", "word"),
        [
            ({"other": torch.ones(6)}, "weights"),
            ({"weights": torch.ones(2, 3)}, "one-dimensional"),
            ({"weights": torch.tensor([1.0, float("nan")])}, "finite"),
            ({"weights": torch.zeros(6)}, "zero"),
        ],
    )
    def test_files_that_hold_no_weights(self, tmp_path, tensors, word):
        with pytest.raises(ValueError, match=word):
            self.file(tmp_path, **tensors)

    def test_a_file_that_is_no_safetensors(self, tmp_path):
        (tmp_path / "w.safetensors").write_text("nothing")
        with pytest.raises(ValueError, match="not a safetensors file"):
            prunekit.create("fusion", "learned", weights=str(tmp_path / "w.safetensors"))


class TestCost:
    def test_published_figures(self):
        """576 tokens over LLaVA-1.5-7B's 32 layers: 2.99 T and 3.82 T multiply-accumulates (FastV's and gated)."""
        for formula, expected in (("fastv", 2.99e12), ("gated", 3.82e12)):
            total = 32 * float(layer_macs(torch.tensor(576), 4096, 11008, formula))
            assert total == pytest.approx(expected, rel=2e-3)

    def test_half_at_a_quarter_of_the_depth_is_not_0_56(self):
        """The founding document's 0.56 for keeping half from layer 8 of 32: by the formula about 0.63."""
        dense = 32 * layer_macs(torch.tensor(576), 4096, 11008)
        pruned = 8 * layer_macs(torch.tensor(576), 4096, 11008) + 24 * layer_macs(torch.tensor(288), 4096, 11008)
        assert float(pruned / dense) == pytest.approx(0.62, abs=0.01)


def test_methods_are_compositions():
    fastv = prunekit.method("fastv", keep_ratio=0.5)
    assert (fastv.scorer.query_set, fastv.schedule.layer, fastv.name) == ("last", 2, "fastv")
    swapped = prunekit.method("fastv", schedule="progressive", keep_tokens=64)
    assert (swapped.scorer.query_set, swapped.keep_tokens) == ("last", 64)


@dataclass
class Given(prunekit.Schedule):
    """A schedule that returns what it is given."""

    plan: tuple = ()

    def cuts(self, depth, keep_ratio):
        return self.plan


CUT = prunekit.Cut


@pytest.mark.parametrize(
    "plan",
    [
        (),
        (CUT(99, 0.5),),
        (CUT(2, 0.5, site="vision"),),
        (CUT(4, 0.7), CUT(2, 0.5)),
        (CUT(2, 0.3), CUT(4, 0.5)),
        (CUT(2, 0.9),),
    ],
)
def test_a_schedule_that_returns_no_plan_is_refused(plan):
    with pytest.raises(ValueError, match="schedule 'Given' must"):
        prunekit.Pruner("random", "single", Given(plan), keep_ratio=0.5).apply(tiny_model("llava"))


@pytest.mark.parametrize(
    ("kind", "name", "options", "word"),
    [
        ("schedule", "one_shot", {"layer": "2"}, "'2'"),
        ("schedule", "one_shot", {"layer": 2.5}, "2.5"),
        ("schedule", "progressive", {"layers": [2, 3.5]}, "3.5"),
        ("fusion", "multi", {"window": True}, "True"),
    ],
)
def test_options_of_another_type(kind, name, options, word):
    with pytest.raises(ValueError, match=word):
        prunekit.create(kind, name, **options)


def test_a_selector_that_keeps_another_number_than_asked_is_followed():
    """Thresholds and outliers keep what they find: lengths, trace and layers agree."""

    @dataclass
    class Half(prunekit.Selector):
        def select(self, view, scores, quota):
            return view.alive & (torch.arange(scores.shape[1]) % 2 == 0)

    model, batch = tiny_model("llava"), make_batch("llava")
    with torch.no_grad(), prunekit.Pruner("random", "single", "one_shot", Half(), keep_ratio=0.1)(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[0].kept.sum(1).tolist() == [8, 8, 8]
    assert trace.tokens_per_layer[-1].tolist() == [18, 18, 18]


TRAINED = ("perceiver", "qformer")


def pruner(reducer, keep: int = 5, **options):
    first = prunekit.create("schedule", "one_shot", layer=0)
    part = prunekit.create("reducer", reducer, **options) if isinstance(reducer, str) else reducer
    return prunekit.Pruner("random", "single", first, "stride", part, keep_tokens=keep, positions="renumber")


def entering(model, run) -> torch.Tensor:
    """What enters the attention block of layer 0."""
    caught = {}
    hook = model.get_decoder().layers[0].input_layernorm.register_forward_pre_hook(lambda m, a: caught.update(x=a[0]))
    run()
    hook.remove()
    return caught["x"]


@pytest.mark.parametrize("seed", range(4))
def test_average_pool_against_loops(seed):
    g = torch.Generator().manual_seed(seed)
    tokens, alive = torch.randn(3, 23, 4, generator=g), torch.rand(3, 23, generator=g) < 0.8
    kept = alive & (torch.rand(3, 23, generator=g) < 0.3)
    kept[:, 0] = alive[:, 0] = True
    pool = prunekit.create("reducer", "average_pool")
    pooled = pool.reduce(tokens=tokens, sizes=torch.ones(3, 23), kept=kept, alive=alive)
    got, sizes = pooled.tokens, pooled.sizes
    for b in range(3):
        places, slots = alive[b].nonzero()[:, 0].tolist(), kept[b].nonzero()[:, 0].tolist()
        runs = [[] for _ in slots]
        for n, place in enumerate(places):
            runs[n * len(slots) // len(places)].append(tokens[b, place].double().numpy())
        for slot, run in zip(slots, runs, strict=True):
            assert np.abs(got[b, slot].double().numpy() - np.mean(run, axis=0)).max() < 1e-5
            assert float(sizes[b, slot]) == pytest.approx(len(places) / len(slots))


def test_average_pool_is_a_method_and_the_decoder_sees_the_means():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with torch.no_grad():
        dense = entering(model, lambda: model(**batch.inputs))
        with prunekit.method("average_pool", keep_tokens=4)(model) as trace:
            pooled = entering(model, lambda: model(**batch.inputs))
    text = (batch.mask & ~batch.visual).sum(1)
    assert trace.tokens_per_layer[0].tolist() == (text + 4).tolist()
    for b in range(3):
        image = dense[b][batch.visual[b]]
        before = int((batch.mask[b] & ~batch.visual[b]).nonzero()[:, 0].lt(batch.visual[b].nonzero()[0, 0]).sum())
        start = pooled.shape[1] - int(text[b]) - 4 + before
        assert (pooled[b, start : start + 4] - image.view(4, 4, -1).mean(1)).abs().max() < 1e-5


@pytest.mark.parametrize("name", TRAINED)
class TestTrained:
    @pytest.mark.parametrize("padding", ["none", "left"])
    def test_shape_and_gradient(self, name, padding):
        model, batch = tiny_model("llava"), make_batch("llava", padding)
        compressor = pruner(name, queries=5, layers=2, heads=4)
        with pytest.warns(UserWarning, match=f"'{name}' has no weights file"), compressor(model) as trace:
            logits = model(**batch.inputs).logits
        torch.nn.functional.cross_entropy(logits[:, -1], torch.tensor([3, 4, 5])).backward()
        module = compressor.reducer.module(32)
        assert logits.shape == (*batch.ids.shape, 96) and trace.cuts[-1].kept.sum(1).tolist() == [5, 5, 5]
        for parameter_name, parameter in module.named_parameters():
            bias_of_keys = parameter_name.endswith("in_proj_bias")  # a part of it cancels in the softmax
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
            assert bias_of_keys or parameter.grad.abs().max() > 0, parameter_name

    def test_a_step_of_training_lowers_the_loss(self, name):
        model, batch = tiny_model("llava"), make_batch("llava")
        compressor = pruner(name, queries=5, heads=4)
        optimiser = torch.optim.SGD(compressor.reducer.module(32).parameters(), lr=0.05)
        losses = []
        with compressor(model):
            for _ in range(4):
                logits = model(**batch.inputs).logits[:, -1]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4, 5]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_padding_and_other_samples_change_nothing(self, name):
        g = torch.Generator().manual_seed(0)
        tokens, alive = torch.randn(3, 12, 16, generator=g), torch.arange(12) < torch.tensor([[12], [7], [3]])
        reducer = prunekit.create("reducer", name, queries=4, heads=4)
        with torch.no_grad():
            together = reducer.compress(tokens, alive, torch.tensor([4, 4, 3]))
            for b, n in enumerate((12, 7, 3)):
                alone = reducer.compress(tokens[b : b + 1, :n], alive[b : b + 1, :n], torch.tensor([3]))
                assert (together[b] - alone[0]).abs().max() < 1e-5
            other = reducer.compress(tokens.flip(-1), alive, torch.tensor([4, 4, 3]))
        assert together.shape == (3, 4, 16) and (other - together).abs().max() > 1e-3

    def test_the_seed_makes_the_module(self, name):
        modules = [prunekit.create("reducer", name, heads=4, seed=seed).module(16) for seed in (1, 1, 2)]
        assert torch.equal(modules[0].queries, modules[1].queries)
        assert not torch.equal(modules[0].queries, modules[2].queries)

    def test_a_sample_without_an_image_leaves_no_nan(self, name):
        reducer = prunekit.create("reducer", name, queries=4, heads=4)
        tokens, alive = torch.randn(2, 6, 16, requires_grad=True), torch.zeros(2, 6, dtype=torch.bool)
        alive[0] = True
        reducer.compress(tokens, alive, torch.tensor([2, 0]))[0].sum().backward()
        assert tokens.grad.isfinite().all()

    def test_what_is_saved_loads_again(self, name, tmp_path):
        compressor = pruner(name, queries=5, heads=4)
        with torch.no_grad():
            compressor.reducer.module(32).queries.add_(1.0)
        compressor.save(tmp_path)
        again = prunekit.Pruner.load(tmp_path)
        assert again.reducer.weights == str(tmp_path / "reducer.safetensors")
        assert torch.equal(again.reducer.module(32).queries, compressor.reducer.module(32).queries)
        again.save(tmp_path / "copy")
        assert (tmp_path / "copy" / "reducer.safetensors").exists()

    def test_more_tokens_than_queries(self, name):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner(name, keep=6, queries=5)(model), pytest.raises(ValueError, match="has 5 queries"):
            model(**batch.inputs)

    def test_weights_that_do_not_fit(self, name, tmp_path):
        with pytest.raises(ValueError, match="no file"):
            prunekit.create("reducer", name, weights=str(tmp_path / "no.safetensors"))
        save_file({"queries": torch.zeros(2, 2)}, str(tmp_path / "w.safetensors"))
        reducer = prunekit.create("reducer", name, heads=4, weights=str(tmp_path / "w.safetensors"))
        with pytest.raises(ValueError, match="does not fit this module") as caught:
            reducer.module(16)
        assert "\n" not in str(caught.value)

    def test_heads_that_do_not_divide_the_width(self, name):
        with pytest.raises(ValueError, match="7 heads"):
            prunekit.create("reducer", name, heads=7).module(32)


TOLERANCE = 1e-4
LAYERS = [2, 4]


def traced(family, padding, seed=0, attn="sdpa", **parts):
    """Batch and trace of one prefill cut before layers 2 and 4."""
    model, batch = tiny_model(family, attn), make_batch(family, padding, seed=seed)
    schedule = prunekit.create("schedule", "progressive", layers=LAYERS)
    with torch.no_grad(), prunekit.Pruner(schedule=schedule, keep_ratio=0.3, **parts)(model) as trace:
        model(**batch.inputs)
    return batch, trace


def check(family, batch, trace, queries, fusion="multi", layers=None, weights=None, heads="mean"):
    """Both cuts' scores against plain loops. The evidence of layers below the first cut saw everything."""
    reference = tiny_model(family, "eager")
    attentions = eager_attentions(reference, batch, hidden_keys(batch, trace.cuts[:1]))
    for number, cut in enumerate(trace.cuts):
        used = layers(cut.layer, number) if layers else list(range(cut.layer))
        expected = scores(
            attentions,
            batch,
            queries=queries,
            layers=used,
            fusion=fusion,
            weights=None if weights is None else [weights[i] for i in used],
            kept=trace.cuts[0].kept if number else None,
            heads=heads,
        )
        assert compare(cut.scores, expected, batch) < TOLERANCE


@pytest.mark.parametrize(("family", "padding"), itertools.product(FAMILIES, PADDINGS))
def test_instruction_over_all_layers(family, padding):
    batch, trace = traced(family, padding)
    check(family, batch, trace, "text")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_visual_over_all_layers(family, attn):
    """Visual evidence of a layer is what the queries standing in that layer gave."""
    batch, trace = traced(family, "left", attn=attn, scorer="visual", fusion="single")
    check(family, batch, trace, "visual", layers=lambda cut, _: [cut - 1])


@pytest.mark.parametrize(("rows", "heads"), itertools.product(["text", "last", "all"], ["mean", "max"]))
def test_choices_of_rows_and_heads(rows, heads):
    scorer = prunekit.create("scorer", "instruction", rows=rows, heads=heads)
    batch, trace = traced("llava", "left", scorer=scorer, fusion="single")
    check("llava", batch, trace, rows, layers=lambda cut, _: [cut - 1], heads=heads)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"window": 2}, lambda cut, _: [cut - 2, cut - 1]),
        ({"from_layers": [1, 3]}, lambda cut, _: [i for i in (1, 3) if i < cut]),
    ],
)
def test_windows_of_the_multi_layer_fusion(options, layers):
    batch, trace = traced("llava", "left", fusion=prunekit.create("fusion", "multi", **options))
    check("llava", batch, trace, "text", layers=layers)


def test_learned_weights(tmp_path):
    weights = torch.rand(DEPTH, generator=torch.Generator().manual_seed(5))
    save_file({"weights": weights}, str(tmp_path / "w.safetensors"))
    fusion = prunekit.create("fusion", "learned", weights=str(tmp_path / "w.safetensors"))
    batch, trace = traced("llava", "left", fusion=fusion)
    check("llava", batch, trace, "text", weights=weights.tolist())


def test_learned_without_weights_is_uniform_with_one_warning():
    with pytest.warns(UserWarning, match="no weights file") as caught:
        batch, trace = traced("llava", "left", fusion="learned")
    assert len(caught) == 1
    check("llava", batch, trace, "text")


@pytest.mark.parametrize(("family", "padding"), itertools.product(FAMILIES, PADDINGS))
def test_rollout_restarts_at_a_cut(family, padding):
    batch, trace = traced(family, padding, fusion="rollout")
    check(family, batch, trace, "text", fusion="rollout", layers=lambda cut, n: list(range(LAYERS[0] * n, cut)))


def test_rollout_of_visual_rows():
    batch, trace = traced("llava", "left", scorer="visual", fusion="rollout")
    check("llava", batch, trace, "visual", fusion="rollout", layers=lambda cut, n: list(range(LAYERS[0] * n, cut)))


def test_tome_is_the_largest_cosine_to_another_token():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    keys = {}
    module = model.get_decoder().layers[1].self_attn
    original = module.k_proj.forward

    def record(x):
        keys["raw"] = original(x)
        return keys["raw"]

    module.k_proj.forward = record
    schedule = prunekit.create("schedule", "one_shot", layer=2)
    with torch.no_grad(), prunekit.Pruner("tome", "single", schedule, keep_ratio=0.5)(model) as trace:
        out = model(**batch.inputs, use_cache=True)
    stored = out.past_key_values.layers[1].keys  # after the rotary embedding, [B, H_kv, S, d]
    for b in range(3):
        places = batch.visual[b].nonzero()[:, 0].tolist()
        mean = {p: stored[b, :, p].mean(0) for p in places}
        for n, p in enumerate(places):
            best = max(float(torch.cosine_similarity(mean[p], mean[q], dim=0)) for q in places if q != p)
            assert abs(float(trace.cuts[0].scores[b, n]) + best) < 1e-5


def test_random_is_reproducible_per_sample_in_any_batch():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    pruner = prunekit.Pruner("random", "single", "one_shot")
    with torch.no_grad(), pruner(model) as trace:
        model(**batch.inputs)
        together = trace.cuts[0].scores
        for b in range(3):
            ids = batch.ids[b][batch.mask[b]][None]
            model(input_ids=ids, pixel_values=batch.inputs["pixel_values"][b : b + 1])
            assert torch.equal(trace.cuts[0].scores[0], together[b])
        assert not torch.equal(together[0], together[1])
    other = prunekit.Pruner(prunekit.create("scorer", "random", seed=1), "single", "one_shot")
    with torch.no_grad(), other(model) as trace:
        model(**batch.inputs)
    assert not torch.equal(trace.cuts[0].scores, together)


def test_sample_without_text_after_the_image_falls_back_to_its_last_token():
    model = tiny_model("llava")
    ids = torch.tensor([[5, 6, *([90] * 16)]])
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad(), prunekit.Pruner(schedule="one_shot")(model) as trace, pytest.warns(UserWarning, match="last"):
        model(input_ids=ids, pixel_values=pixels)
    assert trace.cuts[0].kept.sum() == 8
    assert trace.cuts[0].scores.isfinite().all()


def test_a_scorer_that_does_not_ask_for_attention_is_refused_it():
    @prunekit.register("scorer", "greedy_for_attention")
    @__import__("dataclasses").dataclass
    class Greedy(prunekit.Scorer):
        def score(self, view):
            return view.attention("text")

    model, batch = tiny_model("llava"), make_batch("llava")
    with (
        torch.no_grad(),
        prunekit.Pruner(Greedy(), "single", "one_shot")(model),
        pytest.raises(prunekit.PrunekitError, match="uses_attention"),
    ):
        model(**batch.inputs)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [("[0, 1]", (0, 0.5, 1), (-0.1, 1.1, float("nan"))), ("(0, 1)", (0.5,), (0, 1)), ("[-1, 1)", (-1, 0), (1, 2))],
)
def test_an_interval_holds_its_closed_ends(interval, inside, outside):
    for value in inside:
        prunekit.check_interval("selector.share", value, interval)
    for value in outside:
        with pytest.raises(prunekit.PrunekitError, match=r"selector\.share must lie in"):
            prunekit.check_interval("selector.share", value, interval)
