"""The bench: its contenders do what they say, its models are built in place, its command writes what it says."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

import prunekit
import zoo
from commands import run_main
from prunekit.bench import shapes
from prunekit.bench.measure import median_interval, ratios, spread
from prunekit.bench.memory import AllocationMeter, kv_bytes
from prunekit.bench.options import BenchOptions
from prunekit.bench.run import bench_point
from prunekit.bench.segments import ceiling_segments, eager_segments, segmented
from prunekit.bench.workload import synthetic
from prunekit.cost import outline
from prunekit.engine.cache import cache_in
from prunekit.families import make_family
from zoo.tiny import FAMILIES, make_batch, tiny_model

TINY = shapes._llava(
    shapes._llama(32, 64, 4, 4, vocab=256), {**shapes._CLIP_TOY, "hidden_size": 16, "intermediate_size": 32}
)


@pytest.fixture
def tiny_shape(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    return "tiny"


def fastv(layer, keep):
    scorer = prunekit.create("scorer", "instruction", rows="last")
    return prunekit.Pruner(scorer, "single", prunekit.create("schedule", "one_shot", layer=layer), keep_ratio=keep)


@pytest.mark.parametrize("family", FAMILIES)
class TestContenders:
    def test_a_single_segment_is_the_dense_model(self, family):
        model, batch = tiny_model(family), make_batch(family)
        size = batch.ids.shape[1]
        with torch.no_grad():
            dense = model(**batch.inputs, logits_to_keep=1)
            with segmented(make_family(model), ceiling_segments((size,) * 6)):
                found = model(**batch.inputs, logits_to_keep=1)
            assert torch.equal(model(**batch.inputs, logits_to_keep=1).logits, dense.logits)
        assert torch.equal(found.logits, dense.logits)

    def test_segments_run_all_layers_at_the_lengths_of_the_pruner(self, family):
        """Cut nothing, in three segments: still the dense model. Cut something: the lengths and the cache show it."""
        model, batch = tiny_model(family), make_batch(family)
        size = batch.ids.shape[1]
        with torch.no_grad():
            dense = model(**batch.inputs, logits_to_keep=1).logits
            whole = [s for n in (2, 4) for s in ceiling_segments((size,) * n + (size,) * (6 - n))][:1]
            assert [(s.start, s.stop) for s in whole] == [(0, 6)]
            parts = [type(whole[0])(0, 2), type(whole[0])(2, 3), type(whole[0])(3, 6)]
            with segmented(make_family(model), parts):
                assert (model(**batch.inputs, logits_to_keep=1).logits - dense).abs().max() < 1e-5
            lengths = (size, size, size - 3, size - 5, size - 5, size - 5)
            with segmented(make_family(model), ceiling_segments(lengths)):
                cache = cache_in(model(**batch.inputs, use_cache=True, logits_to_keep=1))
                step = model(input_ids=torch.full((3, 1), 5), past_key_values=cache)
        assert [layer.keys.shape[-2] for layer in cache.layers] == [n + 1 for n in lengths]
        assert step.logits.isfinite().all()

    def test_a_prompt_cut_before_the_first_layer_is_short_in_all(self, family):
        model, batch = tiny_model(family), make_batch(family)
        size = batch.ids.shape[1]
        segments = ceiling_segments((size - 4,) * 3 + (size - 6,) * 3, size)
        with torch.no_grad(), segmented(make_family(model), segments):
            cache = cache_in(model(**batch.inputs, use_cache=True, logits_to_keep=1))
        assert [layer.keys.shape[-2] for layer in cache.layers] == [size - 4] * 3 + [size - 6] * 3

    @pytest.mark.parametrize("layer", [1, 3])
    def test_eager_fastv_is_fastv(self, family, layer):
        """The same tokens by full eager weights as by prunekit's rows: the same logits."""
        model, batch = tiny_model(family), make_batch(family)
        visual = int(batch.visual[0].sum())
        places = batch.visual[0].nonzero()[:, 0]
        pruner = fastv(layer, 0.5)
        family_ = make_family(model)
        with torch.no_grad():
            with pruner(model):
                ours = model(**batch.inputs, logits_to_keep=1).logits
            plan = outline(pruner, prunekit.cost.shape_of(model).text, visual, batch.ids.shape[1] - visual)
            with segmented(family_, eager_segments(plan.tokens, plan.visual, places)):
                theirs = model(**batch.inputs, logits_to_keep=1).logits
            dense = model(**batch.inputs, logits_to_keep=1).logits
        assert (ours - theirs).abs().max() < 1e-4 < (ours - dense).abs().max()

    def test_after_a_failure_the_decoder_is_as_before(self, family):
        model, batch = tiny_model(family), make_batch(family)
        decoder = model.get_decoder()
        layers, norm = decoder.layers, decoder.norm

        def fails(*_):
            raise KeyError("anything")

        segments = [type(s)(s.start, s.stop, True, fails) for s in ceiling_segments((9, 9, 5, 5, 5, 5))]
        with torch.no_grad(), pytest.raises(KeyError), segmented(make_family(model), segments):
            model(**batch.inputs)
        assert decoder.layers is layers and decoder.norm is norm and "forward" not in vars(decoder)
        assert decoder.config._attn_implementation == "sdpa"


def test_the_ceiling_of_a_cut_before_layer_0_keeps_as_little(tiny_shape):
    model = shapes.build(tiny_shape, torch.device("cpu"), torch.float32)
    pruner = prunekit.Pruner("random", "single", "input", keep_ratio=0.25)
    point = bench_point(model, synthetic(model, 32, 8, 1), pruner, BenchOptions(rounds=1, new_tokens=0))
    dense, pruned, ceiling = (point["contenders"][name]["kv_bytes"] for name in ("dense", "pruned", "ceiling"))
    assert ceiling == pruned < dense and point["notes"] == ["no eager_fastv: no layer lies before the first cut"]


def test_a_decoder_that_cannot_be_taken_apart_is_benched_without_a_ceiling(tiny_shape):
    model = shapes.build(tiny_shape, torch.device("cpu"), torch.float32)
    work = synthetic(model, 32, 8, 1)
    work.family.touches_hidden_between_layers = True
    point = bench_point(model, work, fastv(1, 0.5), BenchOptions(rounds=1, new_tokens=0))
    assert list(point["contenders"]) == ["dense", "pruned"] and "no ceiling" in point["notes"][0]


class TestPoint:
    def test_what_is_counted_and_measured(self, tiny_shape):
        model = shapes.build(tiny_shape, torch.device("cpu"), torch.float32)
        work = synthetic(model, 96, 24, 2)
        point = bench_point(model, work, fastv(1, 0.25), BenchOptions(rounds=2, new_tokens=2))
        assert list(point["contenders"]) == ["dense", "pruned", "ceiling", "eager_fastv"]
        assert point["tokens_per_layer"] == [120, 48, 48, 48]
        row = {name: point["contenders"][name] for name in point["contenders"]}
        for name, expected in (("dense", 480), ("pruned", 264), ("ceiling", 264), ("eager_fastv", 264)):
            assert row[name]["kv_bytes"] == expected * 2 * 2 * 32 * 4  # samples, k and v, width, bytes
            time = row[name]["prefill_s"]
            assert 0 < time["low"] <= time["median"] <= time["high"]
        macs = [n * (4 * 32**2 + 3 * 32 * 64) + n * n * 32 for n in (120, 48, 48, 48)]
        head = 32 * 256
        implied = (sum(macs) + head) / (4 * macs[0] + head)
        assert row["pruned"]["flops_ratio"] == pytest.approx(implied)
        for name in ("pruned", "ceiling"):
            assert row[name]["efficiency"] == pytest.approx(implied / row[name]["prefill_ratio"]["median"])
        assert row["pruned"]["activation_bytes"] < row["dense"]["activation_bytes"]
        assert point["vision_s"]["median"] > 0
        assert point["flops"]["pruned"]["scorer"] > 0 == point["flops"]["dense"]["scorer"]

    def test_eager_weights_that_do_not_fit_are_left_out_and_said(self, tiny_shape, monkeypatch):
        from prunekit.bench import run

        monkeypatch.setattr(run, "_free_bytes", lambda device: 1000)
        model = shapes.build(tiny_shape, torch.device("cpu"), torch.float32)
        point = bench_point(model, synthetic(model, 32, 8, 1), fastv(1, 0.5), BenchOptions(rounds=1, new_tokens=0))
        assert "eager_fastv" not in point["contenders"] and "attention weights" in point["notes"][0]


def test_spreads_and_paired_ratios():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert spread([4.0]) == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert ratios([1.0, 2.0], [0.0, 0.0]) is None
    found = ratios([2.0, 6.0, 3.0], [1.0, 2.0, 3.0])
    assert found is not None and found["median"] == 2.0
    assert (found["from"], found["to"]) == (1.0, 3.0)


@pytest.mark.parametrize("count", [1, 5, 6, 15, 41])
def test_the_interval_of_a_median_is_the_narrowest_that_covers(count):
    from scipy.stats import binom

    low, high = median_interval([float(i) for i in torch.randperm(count)])
    rank = int(low)
    assert (low, high) == (rank, count - 1 - rank)
    assert rank == 0 or 1 - 2 * binom.cdf(rank, count, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(rank + 1, count, 0.5) < 0.95


class TestMeter:
    def test_peak_and_largest(self):
        with AllocationMeter() as meter:
            a = torch.ones(100)
            b = a + 1
            del a
            c = b.view(10, 10)[2:] * 2
        assert meter.largest == 100 and meter.peak == 2 * 100 * 4
        assert c.shape == (8, 10)
        assert meter.calls["aten.add.Tensor"] == 1

    def test_an_operation_in_place_allocates_nothing(self):
        with AllocationMeter() as meter:
            a = torch.zeros(50)
            a.add_(1).mul_(2)
        assert meter.peak == 200

    def test_kv_bytes(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad():
            cache = model(**batch.inputs, use_cache=True).past_key_values
        assert kv_bytes(cache) == 3 * 6 * 26 * 2 * 2 * 8 * 4


class TestModels:
    def test_built_in_place_with_the_asked_type_and_no_second_copy(self, tiny_shape, monkeypatch):
        big = shapes._llava(shapes._llama(256, 1024, 4, 4, vocab=1000), TINY["vision_config"])
        monkeypatch.setitem(shapes.SHAPES, "big", big)
        with AllocationMeter() as meter:
            model = shapes.build("big", torch.device("cpu"), torch.bfloat16)
        weights = sum(p.nbytes for p in model.parameters())
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        assert meter.peak < 1.1 * weights + 16 * 2**20  # beside it a block of noise
        assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
        assert model.model.language_model.rotary_emb.inv_freq[0] == 1

    @pytest.mark.parametrize("name", ["small", "medium"])
    def test_the_small_ones_run_and_stay_finite(self, name):
        model = shapes.build(name, torch.device("cpu"), torch.float32)
        work = synthetic(model, 576, 16, 1)
        with torch.no_grad():
            assert model(**work.inputs(), logits_to_keep=1).logits.isfinite().all()
        text = model.config.text_config
        assert name == "small" or (text.num_hidden_layers >= 12 and text.hidden_size >= 512)

    def test_features_of_other_families_are_not_made_up(self):
        with pytest.raises(ValueError, match="'gemma3' is none of llava"):
            synthetic(zoo.build("gemma3"), 16, 8, 1)

    def test_grids_of_any_count(self):
        model = tiny_model("qwen2_vl")
        work = synthetic(model, 12, 6, 2)
        with torch.no_grad():
            assert model(**work.inputs()).logits.isfinite().all()
            assert len(work.vision().pooler_output) == 2


def test_the_page_has_a_place_for_every_table():
    from tools import measure_performance

    page = measure_performance.PAGE.read_text()
    for name, options in measure_performance.SECTIONS.items():
        made = measure_performance.replaced(page, name, "| a table |")
        assert f"<!-- {name} -->\n| a table |\n<!-- end of {name} -->" in made
        assert len(made.split("<!--")) == len(page.split("<!--"))
        assert options[0].removeprefix("bench.shape=") in shapes.SHAPES
    with pytest.raises(SystemExit, match="no markers"):
        measure_performance.replaced(page, "nothing", "")


def bench_arguments(folder, *more):
    fixed = ["task=bench", "device=cpu", "schedule=one_shot", "schedule.layer=1", "keep_ratio=0.25"]
    return [*fixed, "bench.rounds=1", "bench.new_tokens=1", f"hydra.run.dir={folder}", *more]


class TestCommand:
    def test_a_sweep_writes_a_table_json_and_a_plot(self, monkeypatch, tmp_path, tiny_shape):
        more = ["bench.shape=tiny", "bench.visual_tokens=[16,64]", "bench.text_tokens=8", "bench.profile=true"]
        code, out, err = run_main(monkeypatch, *bench_arguments(tmp_path, *more))
        assert code == 0, err
        found = json.loads((tmp_path / "bench.json").read_text())
        assert [p["visual_tokens"] for p in found["points"]] == [16, 64]
        assert {"device", "threads", "dtype", "torch", "method", "shape"} <= found.keys()
        for word in ("dense", "pruned", "ceiling", "eager_fastv", "efficiency", "vision encoder"):
            assert word in out
        assert "aten::" in (tmp_path / "profile.txt").read_text()
        if importlib.util.find_spec("matplotlib"):
            assert (tmp_path / "bench.png").stat().st_size > 5000

    def test_without_matplotlib_one_line_says_so(self, monkeypatch, tmp_path, tiny_shape):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        code, out, err = run_main(
            monkeypatch, *bench_arguments(tmp_path, "bench.shape=tiny", "bench.visual_tokens=[16]")
        )
        assert code == 0, err
        said = [line for line in out.splitlines() if "no plot" in line]
        assert len(said) == 1 and "prunekit[report]" in said[0]
        assert not (tmp_path / "bench.png").exists() and (tmp_path / "bench.json").exists()

    def test_a_budget_is_solved_and_printed(self, monkeypatch, tmp_path, tiny_shape):
        words = [
            a for a in bench_arguments(tmp_path, "bench.shape=tiny", "bench.visual_tokens=[64]") if "keep" not in a
        ]
        code, out, err = run_main(monkeypatch, *words, "budget=flops:0.8")
        assert code == 0, err
        assert "budget flops:0.8: of 64 visual tokens" in out and "tokens per layer with 64 others: 128 " in out
        row = json.loads((tmp_path / "bench.json").read_text())["points"][0]["contenders"]["pruned"]
        assert row["flops_ratio"] == pytest.approx(0.8, abs=0.03)

    def test_the_embedded_model(self, monkeypatch, tmp_path):
        given = ["task=bench", "device=cpu", "bench.rounds=1", "bench.new_tokens=1", f"hydra.run.dir={tmp_path}"]
        code, _, err = run_main(monkeypatch, *given)
        assert code == 0, err
        point = json.loads((tmp_path / "bench.json").read_text())["points"][0]
        assert point["visual_tokens"] == 144 and point["contenders"]["pruned"]["flops_ratio"] < 1

    @pytest.mark.parametrize(
        ("bad", "word"),
        [
            (["bench.shape=llava-1.5-7B"], "Did you mean 'llava-1.5-7b'"),
            (["bench.shape=tiny", "device=cuda"], "device=cuda: no CUDA device here"),
            (["bench.shape=tiny", "bench.visual_tokens=[0]"], "bench.visual_tokens[0]"),
            (["bench.shape=tiny", "bench.visual_tokens=576"], "576"),
            (["bench.shape=tiny", "bench.rounds=0"], "bench.rounds"),
            (["bench.shape=tiny", "bench.text_tokens=some"], "'some'"),
            (["bench.shape=tiny", "schedule.layer=9"], "layer 9"),
            (["bench.shape=tiny", "keep_ratio=null", "budget=flops:0.01"], "out of reach: 0."),
            (["bench.shape=tiny", "budget=flops:0.5"], "exclude"),
            (
                ["bench.shape=tiny", "method=visionzip", "schedule.layer=null"],
                "'visionzip' works in the vision encoder",
            ),
            (["bench.shape=tiny", "keep_ratio=null", "budget=flop:0.5"], "Did you mean 'flops'"),
        ],
    )
    def test_bad_input_ends_in_one_clear_line(self, monkeypatch, tmp_path, tiny_shape, bad, word):
        if "device=cuda" in bad and torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
        replaced = {b.split("=")[0] for b in bad}
        given = [a for a in bench_arguments(tmp_path) if a.split("=")[0] not in replaced]
        code, _, err = run_main(monkeypatch, *given, *bad)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 1 and len(lines) == 1 and word in lines[0] and "Traceback" not in err
