"""Registry, schedules, selectors, reducers and cost, each against plain arithmetic."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import prunekit
from prunekit.components.schedules import cumulative_shares
from prunekit.cost import layer_macs
from prunekit.registry import Registry
from zoo.tiny import make_batch, tiny_model


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
    @settings(max_examples=25, deadline=None)
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
