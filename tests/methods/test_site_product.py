"""Every method before the decoder on families of three kinds: it runs with the budget, or refuses in one line."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import prunekit
import zoo
from hand_vision import siglip_model
from zoo.tiny import make_batch

AT_INPUT = ("visionzip", "prumerge", "prumerge_plus", "fastervlm", "vispruner", "divprune", "cdpruner", "pooling")
INSIDE = ("tome", "evit", "flowcut", "downsample")
ADAPTIVE = ("prumerge", "prumerge_plus", "pooling", "downsample", "tome")
FAMILIES = {
    "llava": "a CLIP tower",
    "llava_siglip": "a SigLIP tower",
    "paligemma": "a SigLIP tower, the prompt bidirectional",
    "deepseek_vl": "a SigLIP tower",
    "llava_next": "a CLIP tower over tiles",
    "llava_onevision": "a SigLIP tower over tiles",
    "qwen2_vl": "M-RoPE",
    "qwen2_5_vl": "M-RoPE, an encoder that sorts its rows by windows",
    "qwen3_vl": "M-RoPE, features of the encoder added to later layers",
}
REFUSALS = {
    ("vision", "llava_next"): "newline tokens",
    ("vision", "llava_onevision"): "newline tokens",
    **{("vision", name): "joins 4 neighbouring patches" for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{("downsample", name): "max_pixels" for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{(name, "qwen3_vl"): "adds patches to later layers" for name in ("visionzip", "prumerge", "prumerge_plus")},
}


@functools.cache
def model_of(family: str):
    return siglip_model() if family == "llava_siglip" else zoo.build(family)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", AT_INPUT + INSIDE)
def test_runs_or_refuses_in_one_line(name, family):
    model = model_of(family)
    where = "vision" if name in INSIDE else "input"
    expected = REFUSALS.get((name, family)) or REFUSALS.get((where, family))
    for padding, options in (("none", {"keep_ratio": 0.5}), ("left", {"keep_tokens": 4})):
        batch = make_batch("llava", padding) if family == "llava_siglip" else zoo.batch(family, padding)
        positions = "keep" if family.startswith("qwen") else None  # which has no others
        pruner = prunekit.method(name, positions=positions, **options)
        if expected:
            with pytest.raises(ValueError, match=expected) as caught:
                pruner.apply(model)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
            continue
        with torch.no_grad(), pruner(model) as trace:
            logits = model(**batch.inputs).logits
            made = model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        assert logits[:, -1].isfinite().all() and made.shape[1] == batch.inputs["input_ids"].shape[1] + 2
        counts, kept = batch.visual.sum(1).tolist(), trace.cuts[-1].kept.sum(1).tolist()
        gone = [n - k for n, k in zip(counts, kept, strict=True)]
        real = batch.inputs["attention_mask"].sum(1).tolist()
        assert trace.tokens_per_layer[0].tolist() == [n - g for n, g in zip(real, gone, strict=True)]
        assert trace.cuts[-1].site == where
        if name not in ADAPTIVE:
            share = options.get("keep_ratio")
            assert kept == [max(1, round(share * n)) if share else min(4, n) for n in counts]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "internvl"])
@pytest.mark.parametrize("name", ["divprune", "cdpruner"])
def test_methods_that_look_at_what_is_projected_work_on_any_family(name, family):
    model, batch = zoo.build(family), zoo.batch(family, "left")
    with torch.no_grad(), prunekit.method(name, keep_tokens=3, positions="keep")(model) as trace:
        assert model(**batch.inputs).logits[:, -1].isfinite().all()
    assert trace.cuts[0].kept.sum(1).tolist() == [3, 3, 3]


@pytest.mark.parametrize("name", ["visionzip", "prumerge"])
def test_reducers_of_the_input_work_in_any_decoder(name):
    """There hidden states stand in for the encoder's features and keys; nothing of the encoder is looked at."""
    reducer = prunekit.method(name).reducer
    for family in ("llava", "gemma3"):
        model, batch = zoo.build(family), zoo.batch(family, "left")
        with torch.no_grad(), prunekit.method("fastv", reducer=reducer, keep_tokens=5)(model) as trace:
            model(**batch.inputs)
        assert trace.cuts[0].kept.sum(1).tolist() == [5, 5, 5] and trace.cuts[0].added.any(1).all()


@pytest.mark.parametrize("name", ["visionzip", "prumerge"])
def test_reducers_of_the_input_with_a_scorer_that_looks_at_nothing(name):
    model, batch = zoo.build("llava"), zoo.batch("llava", "left")
    options = {"scorer": "random", "selector": "topk", "keep_tokens": 5}
    with torch.no_grad(), prunekit.method(name, **options)(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[0].kept.sum(1).tolist() == [5, 5, 5]


@pytest.mark.parametrize("name", AT_INPUT + INSIDE)
def test_positions_are_an_option_and_renumbered_by_default(name):
    model, batch = zoo.build("llava"), zoo.batch("llava", "left")
    assert prunekit.method(name).positions == "renumber"
    found = []
    for positions in ("renumber", "keep"):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with prunekit.method(name, keep_tokens=4, positions=positions)(model):
                found.append(model(**batch.inputs).logits[:, -1])
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", AT_INPUT)
def test_renumbered_positions_go_on_without_a_gap(name):
    """Decoding a token on the cache equals a prefill that has it from the start."""
    if name == "cdpruner":
        pytest.skip("its choice depends on the text, the new token included")
    model, batch = zoo.build("llava"), zoo.batch("llava", "left")
    word = torch.full((3, 1), 7)
    longer = {**batch.inputs, "input_ids": torch.cat([batch.inputs["input_ids"], word], 1)}
    longer["attention_mask"] = torch.cat([batch.inputs["attention_mask"], torch.ones_like(word)], 1)
    with torch.no_grad(), prunekit.method(name, keep_tokens=6)(model, prompt="all"):
        out = model(**batch.inputs, use_cache=True)
        cache = {"past_key_values": out.past_key_values}
        step = model(input_ids=word, attention_mask=longer["attention_mask"], use_cache=True, **cache).logits[:, -1]
        whole = model(**longer).logits[:, -1]
    assert (step - whole).abs().max() < 1e-4


def test_a_budget_of_one_and_of_all():
    model, batch = zoo.build("llava"), zoo.batch("llava", "left")
    for name in AT_INPUT + INSIDE:
        for tokens in (1, 15, 16, 99):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with prunekit.method(name, keep_tokens=tokens)(model) as trace:
                    assert model(**batch.inputs).logits[:, -1].isfinite().all()
            kept = trace.cuts[-1].kept.sum(1).tolist() if trace.cuts else [16] * 3
            assert all(1 <= k <= 16 for k in kept)
            if name not in ADAPTIVE:
                assert kept == [min(tokens, 16)] * 3, (name, tokens)
