"""The cost meter: against plain arithmetic, against torch's counter on real runs, and as budgets."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch

import prunekit
import zoo
from commands import arguments, run_main
from paths import ROOT
from prunekit.bench.shapes import SHAPES, config_of
from prunekit.cost import (
    CONVENTIONS,
    ModelShape,
    Stack,
    Tower,
    estimate,
    flop_counter,
    layer_macs,
    outline,
    prefill_cost,
    shape_of,
    stack_macs,
)
from prunekit.cost.formulas import decode_macs
from prunekit.cost.prefill import vision_macs
from prunekit.families import SUPPORT, make_family
from prunekit.models import load_model
from zoo.tiny import FAMILIES, make_batch, tiny_model

SEVEN_B = Stack(hidden=4096, layers=32, heads=32, mlp=11008)


class TestFormulas:
    @pytest.mark.parametrize("seed", range(10))
    def test_a_stack_counts_every_weight_and_every_pair(self, seed):
        r = random.Random(seed)
        heads, width = r.choice([4, 8]), r.choice([8, 16])
        stack = Stack(
            hidden=r.randint(8, 64), layers=3, heads=heads, kv_heads=r.choice([1, 2, 4]), head_dim=width,
            mlp=r.randint(8, 99), gated=r.random() < 0.5,
        )  # fmt: skip
        tokens = [r.randint(1, 40) for _ in range(3)]
        total = causal = 0
        for n in tokens:
            for matrix in self.matrices(stack):
                total += n * matrix[0] * matrix[1]
            for _ in range(heads):
                total += n * n * width + n * n * width  # logits, and values
                causal += (n * n * width + n * n * width) / 2
        assert stack_macs(stack, tokens, "counter") == total
        assert stack_macs(stack, tokens, "exact") == total - causal
        assert stack_macs(stack, tokens, "exact", causal=False) == total

    @staticmethod
    def matrices(stack):
        queries, keys = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
        found = [(stack.hidden, queries), (stack.hidden, keys), (stack.hidden, keys), (queries, stack.hidden)]
        return found + [(stack.hidden, stack.mlp)] * (3 if stack.gated else 2)

    @pytest.mark.parametrize("convention", ["fastv", "gated", "counter"])
    def test_conventions_agree_where_they_say_the_same(self, convention):
        """Without grouped keys, a gated MLP is what ``gated`` says and a plain one what ``fastv`` says."""
        n, d, m = 640, 4096, 11008
        found = stack_macs(SEVEN_B, [n] * 32, convention)
        matrices = 2 if convention == "fastv" else 3
        assert found == 32 * (4 * n * d * d + 2 * n * n * d + matrices * n * d * m)

    @pytest.mark.parametrize("steps", [0, 1, 5])
    def test_decode_steps_one_by_one(self, steps):
        stack = Stack(hidden=8, layers=2, heads=2, kv_heads=1, mlp=12)
        stored = [9, 4]
        total = 0
        for layer in range(2):
            for step in range(steps):
                keys = stored[layer] + step + 1
                total += stack.token_macs(layer) + keys * stack.heads * 2 * stack.key_width
        assert decode_macs(stack, stored, steps, "counter") == decode_macs(stack, stored, steps, "exact") == total

    def test_the_published_figures(self):
        """576 tokens over LLaVA-1.5-7B: 2.99 T and 3.82 T multiply-accumulates."""
        assert stack_macs(SEVEN_B, [576] * 32, "fastv") == pytest.approx(2.99e12, rel=2e-3)
        assert stack_macs(SEVEN_B, [576] * 32, "gated") == pytest.approx(3.82e12, rel=2e-3)

    @pytest.mark.parametrize(("keep", "claimed", "low", "high"), [(0.5, 0.56, 0.61, 0.63), (0.25, 0.38, 0.42, 0.44)])
    def test_the_founding_documents_column(self, keep, claimed, low, high):
        """Its 0.56 and 0.38 are not what one cut at layer 8 of 32 costs, with no text at all or with 64 tokens."""
        shape = ModelShape(SEVEN_B)
        schedule = prunekit.create("schedule", "one_shot", layer=8)
        pruner = prunekit.Pruner(schedule=schedule, keep_ratio=keep)
        found = [
            estimate(shape, pruner, visual=576, text=0, convention=c).prefill
            / estimate(shape, visual=576, text=0, convention=c).prefill
            for c in ("fastv", "gated", "exact")
        ]
        assert all(low < ratio < high for ratio in found), found
        assert claimed < low

    def test_the_table_of_the_documents_is_what_is_computed(self):
        page = (ROOT / "docs" / "results.md").read_text()
        rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| \d+ % \|", line)]
        assert len(rows) == 4
        shape, schedule = shape_of(config_of("llava-1.5-7b")), prunekit.create("schedule", "one_shot", layer=8)
        for kept, text, _, *values in rows:
            pruner = prunekit.Pruner(schedule=schedule, keep_ratio=int(kept.split()[0]) / 100)
            for convention, value in zip(CONVENTIONS, values, strict=True):
                options = dict(visual=576, text=int(text), convention=convention)
                found = estimate(shape, pruner, **options).prefill / estimate(shape, **options).prefill
                assert float(value) == pytest.approx(found, abs=5.1e-4)

    def test_parts_of_a_batch(self):
        tower = Tower(Stack(8, 2, 2, mlp=16, gated=False), patch_weights=12, projector=99, patches=4, extra=1)
        shape = ModelShape(Stack(16, 3, 4, kv_heads=2, mlp=20), vocab=50, vision=tower)
        cost = estimate(shape, visual=8, text=5, convention="counter", batch=3, decode=2)
        per_image = 2 * (5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8) + 4 * 12
        assert cost.vision == 3 * 2 * per_image and cost.projector == 3 * 8 * 99
        assert cost.lm_head == 3 * 16 * 50
        assert cost.decode == 3 * (decode_macs(shape.text, [13] * 3, 2, "counter") + 2 * 16 * 50)
        assert cost.kv_bytes == 3 * 3 * 13 * 2 * 2 * 4 * 2  # samples, layers, tokens, k and v, heads, width, bytes
        assert cost.tokens_per_layer == (13, 13, 13) and cost.scorer == 0
        assert cost.flops["prefill"] == 2 * cost.prefill

    def test_bad_input_is_named(self):
        for call, word in (
            (lambda: Stack(64, 2, 5), "5 heads"),
            (lambda: Stack(64, 0, 4), "layers"),
            (lambda: estimate(ModelShape(SEVEN_B), visual=-1, text=3), "visual"),
            (lambda: estimate(ModelShape(SEVEN_B), visual=1, text=3, convention="exactly"), "Did you mean 'exact'"),
            (lambda: config_of("llava-7b"), "shape 'llava-7b'"),
        ):
            with pytest.raises(ValueError, match=word) as caught:
                call()
            assert "\n" not in str(caught.value)


def counted(model, inputs, pruner=None):
    """FLOPs of a real prefill, as torch counts them."""
    with torch.no_grad():
        if pruner is None:
            with flop_counter() as counter:
                model(**inputs, logits_to_keep=1)
        else:
            with pruner(model), flop_counter() as counter:
                model(**inputs, logits_to_keep=1)
    return counter.get_total_flops()


PRUNERS = {
    "dense": None,
    "default": dict(),
    "last row": dict(scorer=("instruction", {"rows": "last"}), fusion="single", schedule="one_shot"),
    "all rows": dict(scorer=("instruction", {"rows": "all"}), keep_ratio=0.2),
    "visual": dict(scorer="visual", keep_ratio=0.3),
    "tome": dict(scorer="tome", fusion="single", keep_tokens=5),
    "rollout": dict(fusion="rollout", keep_ratio=0.4),
    "rollout of visual": dict(scorer="visual", fusion="rollout", schedule="one_shot"),
    "random": dict(scorer="random", fusion="single", keep_ratio=0.25),
}


def make(options):
    if options is None:
        return None
    parts = {k: prunekit.create(k, v[0], **v[1]) if isinstance(v, tuple) else v for k, v in options.items()}
    return prunekit.Pruner(**parts)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRUNERS)
def test_counter_is_what_torch_counts(family, name, attn):
    model, batch = tiny_model(family, attn), make_batch(family)
    visual = int(batch.visual[0].sum())
    pruner = make(PRUNERS[name])
    images = {"llava": 1, "llava_next": 5, "qwen2_vl": 1}[family]
    cost = estimate(
        shape_of(model), pruner, visual=visual, text=batch.ids.shape[1] - visual, convention="counter",
        images=images, before=3, batch=3,
    )  # fmt: skip
    assert 2 * cost.total == pytest.approx(counted(model, batch.inputs, pruner), rel=0.01)
    assert cost.tokens_per_layer[0] == batch.ids.shape[1]


IN_THE_DECODER = (
    "dart", "fastv", "ivtp", "ivtp_rollout", "oracle", "pyramiddrop", "random", "sparsevlm", "sparsevlm_keep",
    "uniform",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_DECODER)
def test_published_methods_cost_what_torch_counts(name):
    model, batch = tiny_model("llava"), make_batch("llava")
    pruner = prunekit.method(name)
    regions = {"regions": [[(0.0, 0.0, 0.5, 0.5)]] * 3} if name == "oracle" else {}
    with torch.no_grad(), pruner(model, **regions) as trace, flop_counter() as counter:
        model(**batch.inputs, logits_to_keep=1)
    cost = estimate(shape_of(model), pruner, visual=16, text=10, convention="counter", before=3, batch=3)
    assert list(cost.tokens_per_layer) == trace.tokens_per_layer[:, 0].tolist()
    assert 2 * cost.total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", ["tome", "evit", "downsample"])
def test_cuts_inside_the_encoder_are_not_counted_in_silence(name):
    shape = shape_of(tiny_model("llava"))
    with pytest.raises(ValueError, match="inside the vision encoder"):
        estimate(shape, prunekit.method(name, keep_ratio=0.5), visual=16, text=10)


DECODERS = (
    "gemma3", "glm4v_moe", "qwen2_5_vl", "qwen3_vl_moe", "aria", "mistral3", "deepseek_ocr2", "kimi_k25", "chameleon",
    "smolvlm", "cohere2_vision",
)  # fmt: skip
"""Sliding windows, experts, keys of two parts, norms of heads, and plain ones."""


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_all_kinds(name):
    """Layer by layer what torch counts, and the same shape from the config alone."""
    model, batch = zoo.build(name, "eager"), zoo.batch(name)
    family, shape = make_family(model), shape_of(model)
    path = next(path for path, module in model.named_modules() if module is family.decoder)
    with torch.inference_mode(), flop_counter() as counter:
        model(**batch.inputs)
    counts = counter.get_flop_counts()
    size = batch.inputs["input_ids"].shape
    for layer in range(family.depth):
        found = sum(counts[f"{type(model).__name__}.{path}.layers.{layer}"].values())
        tokens = [size[1] if i == layer else 0 for i in range(family.depth)]
        assert 2 * size[0] * stack_macs(shape.text, tokens, "counter") == pytest.approx(found, rel=0.01)
    assert shape_of(model.config).text == shape.text


def test_counter_on_the_embedded_model():
    from prunekit.data import load
    from prunekit.evaluation.batches import Batcher

    loaded = load_model("mini", device="cpu")
    batcher, example = Batcher(loaded), load("test", limit=1)
    batcher.shares_features = False
    inputs = batcher.inputs(example)
    visual = loaded.model.config.image_seq_length
    places = (inputs["input_ids"][0] == loaded.model.config.image_token_id).nonzero()[:, 0]
    size, before = inputs["input_ids"].shape[1], int(places[0])
    shape = shape_of(loaded.model)
    for options in (None, {}, dict(fusion="rollout", keep_ratio=0.25)):
        pruner = make(options)
        cost = estimate(shape, pruner, visual=visual, text=size - visual, convention="counter", before=before)
        assert 2 * cost.total == pytest.approx(counted(loaded.model, inputs, pruner), rel=0.01)


def test_decode_is_what_torch_counts():
    model, batch = tiny_model("llava"), make_batch("llava")
    pruner = prunekit.Pruner(keep_ratio=0.25)
    with torch.no_grad(), pruner(model):
        made = dict(max_new_tokens=6, do_sample=False)
        with flop_counter() as counter:
            model.generate(**batch.inputs, **made)
    cost = estimate(shape_of(model), pruner, visual=16, text=10, convention="counter", before=3, batch=3, decode=5)
    assert 2 * cost.total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_tokens_and_cache_are_those_of_a_real_run(family):
    model, batch = tiny_model(family), make_batch(family)
    visual = int(batch.visual[0].sum())
    pruner = prunekit.Pruner(keep_ratio=0.3)
    with torch.no_grad(), pruner(model) as trace:
        out = model(**batch.inputs, use_cache=True)
    plan = outline(pruner, shape_of(model).text, visual, batch.ids.shape[1] - visual)
    assert list(plan.tokens) == trace.tokens_per_layer[:, 0].tolist()
    text = batch.ids.shape[1] - visual
    cost = estimate(shape_of(model), pruner, visual=visual, text=text, batch=3, bytes_per_value=4)
    layers = out.past_key_values.layers
    assert cost.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes_are_read_off_their_configs(name):
    shape = shape_of(config_of(name))
    assert shape.vision is not None and shape.vocab > 1000
    if name == "llava-1.5-7b":
        assert [shape.text.token_macs(i) for i in range(32)] == [SEVEN_B.token_macs(i) for i in range(32)]
        assert (shape.vision.patches, shape.vision.extra) == (576, 1)
        whole = sum(shape.text.token_macs(i) for i in range(32)) + 2 * shape.vocab * 4096
        assert whole == pytest.approx(6.74e9, rel=0.01)  # the parameters of Vicuna-7B
    if name == "qwen2.5-vl-7b":
        assert (shape.text.key_heads, shape.text.key_width, shape.vision.window) == (4, 128, 64)
        assert len(shape.vision.whole) == 4


def decoder_layer(tokens: int) -> int:
    """MACs of a layer of the tiny decoder, gated formula."""
    return 4 * tokens * 32**2 + 2 * tokens * tokens * 32 + 3 * tokens * 32 * 48


class TestBudgets:
    def reached(self, budget, model, batch):
        """What a real prefill under the budget costs, and its trace."""
        pruner = prunekit.Pruner("random", "single", "progressive", budget=budget)
        with torch.no_grad(), pruner(model) as trace:
            model(**batch.inputs)
        return trace

    @pytest.mark.parametrize("target", [0.65, 0.7, 0.9, 1.0])
    def test_flops(self, target):
        """As near as whole tokens come: one token more or less changes the ratio by no more than the tolerance."""
        model, batch = tiny_model("llava"), make_batch("llava")
        tokens = self.reached(f"flops:{target}", model, batch).tokens_per_layer[:, 0].tolist()
        spent = [4 * n * 32**2 + 2 * n * n * 32 + 3 * n * 32 * 48 for n in (*tokens, 26)]
        assert sum(spent[:-1]) / (6 * spent[-1]) == pytest.approx(target, abs=0.03)

    @pytest.mark.parametrize("target", [8, 12, 16])
    def test_mean_tokens(self, target):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        trace = self.reached(f"mean_tokens:{target}", model, batch)
        visual = trace.tokens_per_layer.double() - (batch.mask.sum(1) - 16)
        assert visual.mean(0).tolist() == pytest.approx([target] * 3, abs=0.5)

    def test_final(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        assert self.reached("final:5", model, batch).cuts[-1].kept.sum(1).tolist() == [5, 5, 5]

    def test_samples_of_different_length_each_meet_it(self):
        model, batch = tiny_model("qwen2_vl"), make_batch("qwen2_vl", "left")
        tokens = self.reached("flops:0.9", model, batch).tokens_per_layer
        for b in range(3):
            spent = [4 * n * 32**2 + 2 * n * n * 32 + 3 * n * 32 * 48 for n in tokens[:, b].tolist()]
            assert sum(spent) / (6 * spent[0]) == pytest.approx(0.9, abs=0.03)

    @pytest.mark.parametrize("kind", ["flops", "total"])
    @pytest.mark.parametrize("name", ["tome", "evit", "divprune", "withdraw"])
    def test_cuts_anywhere_meet_it(self, name, kind):
        """Tokens of a real prefill and of its encoder, by plain arithmetic."""
        from prunekit.cost.estimate import tower_macs
        from prunekit.pruning.budget import Budget

        model, batch = tiny_model("llava"), make_batch("llava")
        budget = Budget(kind, 0.75, visual=16, text=10)
        withdrawal = prunekit.Pruner("random", "single", "withdraw", budget=budget)
        pruner = withdrawal if name == "withdraw" else prunekit.method(name, budget=budget)
        with torch.no_grad(), pruner(model) as trace:
            model(**batch.inputs)
        spent = sum(decoder_layer(n) for n in trace.tokens_per_layer[:, 0].tolist())
        dense = 6 * decoder_layer(26)
        if kind == "total":
            tower, vision = shape_of(model).vision, model.config.vision_config
            whole = tower_macs(tower, [16], "counter") + 16 * tower.projector
            block = lambda n: (  # noqa: E731
                4 * n * vision.hidden_size**2
                + 2 * n * n * vision.hidden_size
                + 2 * n * vision.hidden_size * vision.intermediate_size
            )
            entered = trace.vision_tokens[:, 0].tolist() if name in ("tome", "evit") else []
            spent, dense = spent + whole - sum(block(17) - block(n) for n in entered), dense + whole
        assert spent / dense == pytest.approx(0.75, abs=0.04)

    def test_what_no_layer_and_no_ratio_reaches_is_said(self):
        with pytest.raises(ValueError, match=r"flops:0\.1 is out of reach: .* steps, the nearest"):
            prunekit.Pruner("random", "single", "withdraw", budget="flops:0.1").apply(tiny_model("llava"))
        with pytest.raises(ValueError, match=r"flops:0\.01 is out of reach"):
            prunekit.method("tome", budget="flops:0.01").apply(tiny_model("llava"))
        with pytest.raises(ValueError, match="keeps no visual token: budget=final:5"):
            prunekit.Pruner("random", "single", "withdraw", budget="final:5")

    @pytest.mark.parametrize("seed", range(10))
    def test_the_count_is_the_nearest(self, seed):
        """Against trying every count."""
        from prunekit.pruning.budget import Budget, allot

        r = random.Random(seed)
        visual, text, depth = r.randint(20, 200), r.randint(0, 60), r.randint(4, 12)
        target = r.uniform(0.5, 1.0)
        found = allot(Budget("flops", target, visual, 0), prunekit.create("schedule", "progressive"), depth, 64, 200)
        values = {k: found.value(k, visual, text) for k in range(1, visual + 1)}
        best = min(abs(v - target) for v in values.values())
        assert abs(values[found.solve(visual, text)] - target) == pytest.approx(best, abs=1e-12)

    def test_cuts_move_to_earlier_layers_only_as_far_as_needed(self):
        from prunekit.pruning.budget import FLOOR, Budget, allot

        def layers(target, **options):
            schedule = prunekit.create("schedule", "progressive", **options)
            found = allot(Budget("flops", target, 576, 64), schedule, 32, 4096, 11008)
            return [cut.layer for cut in found.schedule.cuts(32, 0.5)], found.solve(576, 64) / 576

        assert layers(0.7)[0] == [8, 16]
        early, share = layers(0.35)
        assert early[0] < 8 and share >= FLOOR
        assert layers(0.35, layers=[8, 16])[0] == [8, 16]

    @pytest.mark.parametrize(
        ("budget", "words"),
        [
            ("flops:0.01", ["flops:0.01 is out of reach", "0.243 to 1 "]),
            ("mean_tokens:17", ["mean_tokens:17 is out of reach", "to 16 "]),
            ("final:17", ["final:17 is out of reach: 1 to 16"]),
            ("flops:1.5", ["(0, 1]", "1.5"]),
            ("flops:half", ["'half'", "flops:0.5"]),
            ("flops", ["''"]),
            ("flop:0.5", ["Did you mean 'flops'"]),
            ("final:2.5", ["whole number", "2.5"]),
        ],
    )
    def test_what_cannot_be_met_says_what_can(self, budget, words):
        with pytest.raises(ValueError) as caught:
            prunekit.Pruner(budget=budget).apply(tiny_model("llava"))
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_prompt_out_of_reach_warns_and_keeps_one(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with pytest.warns(UserWarning, match="cannot cost less"):
            trace = self.reached("flops:0.3", model, batch)
        assert trace.cuts[-1].kept.sum(1).tolist() == [1, 1, 1]

    def test_it_excludes_a_ratio_and_is_saved(self, tmp_path):
        with pytest.raises(ValueError, match="excludes"):
            prunekit.Pruner(budget="final:5", keep_ratio=0.5)
        pruner = prunekit.Pruner(budget="mean_tokens:12")
        pruner.save(tmp_path)
        assert str(prunekit.Pruner.load(tmp_path).budget) == "mean_tokens:12"
        assert "budget='mean_tokens:12'" in repr(pruner)
        assert prunekit.method("fastv", budget="final:5").budget is not None

    @pytest.mark.parametrize(("budget", "schedule"), [("flops:0.6", "progressive"), ("flops:0.7", "one_shot")])
    def test_a_run_meets_it_and_prints_what_it_came_to(self, monkeypatch, tmp_path, model_folder, budget, schedule):
        given = [f"budget={budget}", f"schedule={schedule}"]
        code, out, err = run_main(monkeypatch, *arguments(model_folder, tmp_path, *given))
        assert code == 0, err
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["flops_ratio"] == pytest.approx(float(budget.split(":")[1]), abs=0.01)
        assert metrics["method"]["budget"] == budget and metrics["method"]["keep_ratio"] is None
        assert f"budget {budget}: of 144 visual tokens" in out and "tokens per layer with" in out


@pytest.mark.parametrize("name", [name for name, row in SUPPORT.items() if row.encoder_shape])
def test_vision_encoders_are_what_torch_counts(name):
    """All that is run before the decoder, from a batch's pixels and from the shape."""
    model, batch = zoo.build(name, "eager"), zoo.batch(name)
    family, kind = make_family(model), type(model).__name__
    path = next(path for path, module in model.named_modules() if module is family.decoder)
    with torch.inference_mode(), flop_counter() as counter:
        model(**batch.inputs)
    counts = counter.get_flop_counts()
    decoder, head = (sum(counts.get(f"{kind}.{part}", {}).values()) for part in (path, "lm_head"))
    encoder = counter.get_total_flops() - decoder - head
    assert 2 * vision_macs(family, batch.inputs) == pytest.approx(encoder, rel=0.01)
    assert shape_of(model.config).vision == shape_of(model).vision is not None


@pytest.mark.parametrize("name", ["llava_pixtral", "mistral3", "blip-2"])
def test_encoders_of_other_kinds_are_not_guessed(name):
    assert shape_of(zoo.build(name)).vision is None


def test_a_cut_before_layer_0_saves():
    family, tokens = make_family(tiny_model("llava")), torch.full((6, 1), 14)
    cost = prefill_cost(family, tokens, torch.tensor([26]), None)
    expected = float(layer_macs(torch.tensor(14), 32, 48) / layer_macs(torch.tensor(26), 32, 48))
    assert cost.flops_ratio == pytest.approx(expected) and cost.kv_ratio == pytest.approx(14 / 26)
    assert cost.flops_ratio_with_vision is None
