"""The cut of an image by itself is that of the pruned model, without vLLM."""

import pytest
import torch

import prunekit
import zoo
from prunekit.data.source import open_source
from prunekit.families import family_of
from prunekit.models import load_model
from prunekit.vllm.cut import ImageCut, Surroundings

METHODS = ("divprune", "fastervlm", "visionzip", "vispruner", "hiprune", "scope", "cdpruner", "mmtok", "average_pool")


@pytest.fixture(scope="module")
def mini():
    return load_model("mini", dtype="float32")


def inputs_of(loaded, example):
    content = [{"type": "image"}, {"type": "text", "text": example.question}]
    text = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return loaded.processor(images=[example.image()], text=text, return_tensors="pt")


def surroundings(model, inputs, family):
    ids = inputs["input_ids"][0]
    return Surroundings(ids, family.visual_mask(ids[None])[0], model.get_input_embeddings()(ids))


def states_of(model, inputs, pruner):
    """What enters the first layer of the pruned model, and which visual tokens stayed."""
    seen = []
    with pruner(model) as trace, torch.no_grad():
        handle = (
            model.get_decoder()
            .layers[0]
            .register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        )
        model(**inputs)
        handle.remove()
    return seen[0][0], trace.cuts[-1].kept[0].nonzero()[:, 0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_equals_the_pruned_model(mini, name, ratio):
    model, family, pruner = mini.model, family_of(mini.model), prunekit.method(name, keep_ratio=ratio)
    cut = ImageCut(pruner, family)
    for example in open_source({"name": "mini", "split": "validation", "limit": 3, "max_new_tokens": 1}):
        inputs = inputs_of(mini, example)
        hidden, kept = states_of(model, inputs, pruner)
        around = surroundings(model, inputs, family)
        with torch.no_grad():
            with cut.watching():
                tokens = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0]
            stays, index = cut(tokens, around if name in ("cdpruner", "mmtok") else None)
        assert index.tolist() == kept.tolist()
        first = int(around.visual.long().argmax())
        torch.testing.assert_close(stays, hidden[first : first + len(kept)], atol=1e-5, rtol=1e-4)


def test_a_component_that_reads_words_without_saying_so_is_refused(mini):
    cut = ImageCut(prunekit.method("cdpruner"), family_of(mini.model))
    with pytest.raises(prunekit.PrunekitError, match="prompt"):
        cut(torch.randn(144, mini.model.config.text_config.hidden_size))


def test_all_tokens_stay_at_ratio_one(mini):
    cut = ImageCut(prunekit.method("divprune", keep_ratio=1.0), family_of(mini.model))
    tokens = torch.randn(144, mini.model.config.text_config.hidden_size)
    stays, index = cut(tokens)
    assert torch.equal(stays, tokens) and index.tolist() == list(range(144))


def test_hooks_are_off_again(mini):
    model = mini.model
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    cut = ImageCut(prunekit.method("fastervlm"), family_of(model))
    with pytest.raises(RuntimeError), cut.watching():
        raise RuntimeError
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == before
    assert "get_image_features" not in vars(model.model)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_equals_the_pruned_model_on_other_families(name):
    model = zoo.build(name)
    family = family_of(model)
    inputs = {key: value[:1] if key in ("input_ids", "attention_mask", "mm_token_type_ids") else value
              for key, value in zoo.batch(name).inputs.items()}  # fmt: skip
    sizes = inputs["image_grid_thw"].prod(-1) if "image_grid_thw" in inputs else [1]
    inputs["pixel_values"] = inputs["pixel_values"][: int(sizes[0])]
    for key in ("image_grid_thw", "image_sizes"):
        if key in inputs:
            inputs[key] = inputs[key][:1]
    positions = "keep" if name == "qwen2_5_vl" else "renumber"
    pruner = prunekit.method("fastervlm", keep_ratio=0.5, positions=positions)
    _, kept = states_of(model, inputs, pruner)
    cut = ImageCut(pruner, family)
    more = {key: inputs[key] for key in ("image_grid_thw", "image_sizes") if key in inputs}
    with torch.no_grad(), cut.watching():
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True, **more).pooler_output
    _, index = cut(torch.cat([*features]))
    assert index.tolist() == kept.tolist()
