"""``set_attn_implementation`` under a pruner: followed at the next forward pass, or refused in one line there."""

from __future__ import annotations

import pytest
import torch

import prunekit
import zoo
from prunekit.families import make_family
from zoo.tiny import make_batch, tiny_model

SWITCHES = [("sdpa", "eager"), ("eager", "sdpa")]


def output(model, batch, **more):
    with torch.no_grad():
        return model(**batch.inputs, **more)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize(("first", "second"), SWITCHES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "gemma4", "qwen3_vl"])
def test_the_new_implementation_acts_at_the_next_forward_pass(family, first, second, ratio):
    build = tiny_model if family in ("llava", "qwen2_vl") else zoo.build
    batch = make_batch(family, "left") if build is tiny_model else zoo.batch(family, "left")
    pruner = prunekit.Pruner(keep_ratio=ratio)
    with pruner(model := build(family, second)) as trace:
        want, kept = output(model, batch).logits, trace.cuts[-1].kept
        steps = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    model = build(family, first)
    with pruner(model) as trace:
        output(model, batch)
        model.set_attn_implementation(second)
        assert torch.equal(output(model, batch).logits, want) and torch.equal(trace.cuts[-1].kept, kept)
        assert torch.equal(model.generate(**batch.inputs, max_new_tokens=4, do_sample=False), steps)
    assert torch.equal(output(model, batch).logits, output(build(family, second), batch).logits)


def test_everything_has_its_attention_weights_once_the_model_is_eager():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with prunekit.Pruner(keep_ratio=0.3)(model):
        output(model, batch)
        model.set_attn_implementation("eager")
        weights = output(model, batch, output_attentions=True).attentions
    assert len(weights) == 6 and all(layer is not None for layer in weights)


def test_a_switch_between_prefill_and_decode_step():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
    steps = []
    for names in (("eager", "eager"), ("sdpa", "eager"), ("eager", "sdpa")):
        model.set_attn_implementation(names[0])
        with torch.no_grad(), prunekit.Pruner(keep_ratio=0.3)(model):
            cache = model(**batch.inputs).past_key_values
            model.set_attn_implementation(names[1])
            steps.append(model(input_ids=torch.full((3, 1), 5), attention_mask=mask, past_key_values=cache).logits)
    assert max((step - steps[0]).abs().max() for step in steps) < 1e-4


@pytest.mark.parametrize("how", ["removed", "failed"])
def test_after_removal_the_model_has_the_implementation_that_was_set_last(how):
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with pytest.raises(KeyError) if how == "failed" else prunekit.Pruner()(tiny_model("qwen2_vl")):  # noqa: SIM117
        with prunekit.Pruner(keep_ratio=0.3)(model):
            model.set_attn_implementation("eager")
            if how == "failed":
                raise KeyError
    config = model.config.text_config
    assert type(config._attn_implementation) is str and config._attn_implementation == "eager"
    assert all(layer.self_attn.config is config for layer in model.get_decoder().layers)
    assert torch.equal(output(model, batch).logits, output(tiny_model("llava", "eager"), batch).logits)


@pytest.mark.parametrize("name", ["visionzip", "tome", "fastervlm"])
def test_inside_the_encoder_too(name):
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    pruner = prunekit.method(name)
    with pruner(eager := tiny_model("llava", "eager")):
        want = output(eager, batch).logits
    with pruner(model):
        output(model, batch)
        model.set_attn_implementation("eager")
        assert torch.equal(output(model, batch).logits, want)
    with pruner(model):  # of a part alone
        model.set_attn_implementation({"vision_config": "sdpa"})
        output(model, batch)
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "eager"


def test_one_that_cannot_be_pruned_is_refused_at_the_next_forward_and_the_model_goes_on():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with prunekit.Pruner(keep_ratio=0.3)(model):
        want = output(model, batch).logits
        model.set_attn_implementation("flex_attention")
        for call in (lambda: output(model, batch), lambda: model.generate(**batch.inputs, max_new_tokens=2)):
            with pytest.raises(ValueError, match=r"set_attn_implementation\('flex_attention'\)") as caught:
                call()
            assert "\n" not in str(caught.value)
        model.set_attn_implementation("sdpa")
        assert torch.equal(output(model, batch).logits, want)
        model.set_attn_implementation("flex_attention")
    assert model.config.text_config._attn_implementation == "flex_attention"


def test_a_change_of_the_models_config_under_a_pruner_is_seen_and_stays():
    model, batch = tiny_model("llava"), make_batch("llava")
    with prunekit.Pruner(keep_ratio=0.3)(model):
        output(model, batch)
        attention = model.get_decoder().layers[0].self_attn
        model.config.text_config.marked = 3
        assert attention.config.marked == 3
        assert isinstance(attention.config, type(model.config.text_config))
        attention.config.marked = 4
        assert make_family(model).implementation == "sdpa"
    assert model.config.text_config.marked == 4
