"""Scores equal those of the model's own eager attention weights, by plain loops; before and after a first cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import save_file

import prunekit
from reference import compare, eager_attentions, hidden_keys, scores
from zoo.tiny import DEPTH, FAMILIES, PADDINGS, make_batch, tiny_model

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
