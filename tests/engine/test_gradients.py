"""What training needs of a pruned model: gradients, checkpointing, LoRA, half precision."""

from __future__ import annotations

import pytest
import torch

import prunekit
import zoo
from prunekit.families import make_family
from reference import hidden_keys, prompt_logits
from zoo.base import OLD
from zoo.tiny import make_batch, tiny_model

PRUNER = dict(keep_ratio=0.3)


def gradients(model, batch, pruner) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with pruner(model):
        logits = model(**batch.inputs, use_cache=False).logits
        logits[~batch.visual].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scorer", ["instruction", "random"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_gradient_checkpointing_gives_the_same_gradients(family, scorer):
    model, batch = tiny_model(family).train(), make_batch(family, "left")
    pruner = prunekit.Pruner(scorer, **PRUNER)
    plain = gradients(model, batch, pruner)
    model.gradient_checkpointing_enable()
    if OLD:  # there hooks run again in the backward pass
        with pytest.raises(ValueError, match="gradient checkpointing"):
            gradients(model, batch, pruner)
        return
    again = gradients(model, batch, pruner)
    assert plain.keys() == again.keys() and any(g.abs().sum() > 0 for g in plain.values())
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


def test_gradients_of_the_pruned_model_are_those_of_the_masked_one():
    from reference import masked

    model, batch = zoo.build("llava"), zoo.batch("llava", "left")
    text = batch.mask & ~batch.visual
    parameters = [p for n, p in model.named_parameters() if "language_model" in n or "projector" in n]
    with prunekit.Pruner(**PRUNER)(model) as trace:
        loss = model(**batch.inputs, use_cache=False).logits[text].square().mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    reference = zoo.build("llava", "eager")
    parameters = [p for n, p in reference.named_parameters() if "language_model" in n or "projector" in n]
    with masked(reference, batch, hidden_keys(batch, trace.cuts)):
        loss = reference(**batch.inputs, use_cache=False).logits[text].square().mean()
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    for got, want in zip(found, expected, strict=True):
        assert (got is None) == (want is None)
        assert got is None or (got - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


def test_checkpointing_is_refused_where_a_layer_depends_on_true_positions():
    model, batch = zoo.build("llama4_tempered").train(), zoo.batch("llama4_tempered")
    model.gradient_checkpointing_enable()
    with prunekit.Pruner("random", "single")(model), pytest.raises(ValueError, match="gradient checkpointing"):
        model(**batch.inputs)


def test_checkpointing_where_a_layer_is_given_its_distances_gives_the_same_gradients():
    """Inkling 2 from transformers 5.24 on; before, its layers count places inside and are refused."""
    if "inkling2" not in zoo.NAMES:
        pytest.skip("this transformers has no such family")
    model, batch = zoo.build("inkling2", "eager").train(), zoo.batch("inkling2", "left")
    pruner = prunekit.Pruner("random", **PRUNER)
    counts_inside = make_family(model).relative_bias(0) is not None
    plain = gradients(model, batch, pruner)
    model.gradient_checkpointing_enable()
    if counts_inside:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            gradients(model, batch, pruner)
        return
    again = gradients(model, batch, pruner)
    assert plain.keys() == again.keys() and any(g.abs().sum() > 0 for g in plain.values())
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    return peft.get_peft_model(model, config)


def generate(model, batch):
    with torch.no_grad():
        return model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_lora_model_is_pruned_as_its_merged_self(family):
    batch, pruner = make_batch(family, "left"), prunekit.Pruner(**PRUNER)
    wrapped = lora(tiny_model(family)).eval()
    with pruner(wrapped) as trace, torch.no_grad():
        logits, tokens = wrapped(**batch.inputs).logits, generate(wrapped, batch)
        kept = trace.cuts[-1].kept
    merged = wrapped.merge_and_unload()
    with pruner(merged) as trace, torch.no_grad():
        assert (merged(**batch.inputs).logits - logits).abs().max() < 1e-4
        assert torch.equal(trace.cuts[-1].kept, kept)
        assert torch.equal(generate(merged, batch), tokens)


def test_lora_added_after_apply_is_pruned_as_well():
    batch, model = make_batch("llava", "left"), tiny_model("llava")
    handle = prunekit.Pruner(**PRUNER).apply(model)
    wrapped = lora(model).eval()
    with torch.no_grad():
        logits, tokens = wrapped(**batch.inputs).logits, generate(wrapped, batch)
    handle.remove()
    with prunekit.Pruner(**PRUNER)(wrapped), torch.no_grad():
        assert torch.equal(wrapped(**batch.inputs).logits, logits)
        assert torch.equal(generate(wrapped, batch), tokens)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_full_as_the_masked_model_is(name, dtype):
    batch = zoo.batch(name, "left")
    exact, half = zoo.build(name), zoo.build(name).to(dtype)
    rounded = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    text = batch.mask & ~batch.visual
    pruner = prunekit.Pruner("random", "single", keep_ratio=0.3)  # the same tokens go at any precision
    with torch.no_grad():
        with pruner(exact) as trace:
            full = exact(**batch.inputs).logits
        hidden = hidden_keys(batch, trace.cuts)
        with pruner(half):
            pruned = half(**rounded).logits
        masked = prompt_logits(half, zoo.Batch(rounded, batch.visual), hidden)
    own = (masked.float() - full)[text].abs().mean()
    assert (pruned.float() - full)[text].abs().mean() < 2 * own + 1e-3


def test_a_compiled_decode_step_on_a_pruned_cache():
    """Prefill eager, decode steps through torch.compile (its graph capture; no code generator): the same logits."""
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    compiled = torch.compile(model, backend="eager")
    steps = []
    with torch.no_grad(), prunekit.Pruner(**PRUNER)(model):
        for step in (model, compiled):
            cache, mask, found = model(**batch.inputs).past_key_values, batch.inputs["attention_mask"], []
            for token in (5, 6):
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                ids = torch.full((3, 1), token)
                found.append(step(input_ids=ids, attention_mask=mask, past_key_values=cache).logits)
            steps.append(torch.cat(found, 1))
    assert (steps[0] - steps[1]).abs().max() < 1e-5


def test_a_dispatched_model_with_layers_on_disk(tmp_path):
    """``device_map`` puts accelerate's hooks on the layers; here every other layer lives on disk (no second device)."""
    from accelerate import dispatch_model

    model, batch = tiny_model("llava"), make_batch("llava", "left")

    def run():
        with torch.no_grad(), prunekit.Pruner(**PRUNER)(model):
            tokens = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
            return model(**batch.inputs).logits, tokens

    logits, tokens = run()
    text = model.model.language_model
    names = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    names += [f"model.language_model.{name}" for name in ("embed_tokens", "norm", "rotary_emb")]
    places = dict.fromkeys(names, "cpu")
    places |= {f"model.language_model.layers.{i}": "cpu" if i % 2 else "disk" for i in range(len(text.layers))}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert {str(next(layer.parameters()).device) for layer in text.layers} == {"cpu", "meta"}
    again, again_tokens = run()
    assert torch.equal(logits, again) and torch.equal(tokens, again_tokens)
