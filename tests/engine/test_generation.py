"""Generation beyond greedy: sampling, beams, several sequences, lookup decoding, turns, and refused caches."""

from __future__ import annotations

import pytest
import torch

import prunekit
import zoo
from reference import hidden_keys, masked
from zoo.tiny import make_batch, tiny_model

FAMILIES = ("llava", "qwen2_vl", "gemma3", "qwen3_vl", "gemma4")
PRUNER = dict(scorer="random", fusion="single", keep_ratio=0.3)


def repeated(batch: zoo.Batch, times: int) -> zoo.Batch:
    """Every sample ``times`` times in a row, its pictures as well (one to a sample)."""
    return zoo.Batch(
        {k: v.repeat_interleave(times, 0) for k, v in batch.inputs.items()}, batch.visual.repeat_interleave(times, 0)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_seed_equals_sampling_from_the_masked_model(family):
    model, batch = zoo.build(family), zoo.batch(family, "left")
    options = dict(max_new_tokens=5, do_sample=True, temperature=1.5, top_k=20)
    with torch.no_grad():
        with prunekit.Pruner(**PRUNER)(model) as trace:
            torch.manual_seed(3)
            found = model.generate(**batch.inputs, **options)
            torch.manual_seed(3)
            again = model.generate(**batch.inputs, **options)
        with masked(model, batch, hidden_keys(batch, trace.cuts)):
            torch.manual_seed(3)
            expected = model.generate(**batch.inputs, **options)
    assert torch.equal(found, again) and torch.equal(found, expected)


@pytest.mark.parametrize("options", [dict(do_sample=True), dict(num_beams=3)], ids=["sampled", "beams"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "blip-2", "instructblip", "instructblipvideo"])
def test_several_sequences_a_sample(family, options):
    model, batch = zoo.build(family), zoo.batch(family, "left")
    options = dict(num_return_sequences=3, max_new_tokens=4) | options
    whole = repeated(batch, 3)
    with torch.no_grad():
        with prunekit.Pruner(**PRUNER)(model) as trace:
            torch.manual_seed(5)
            found = model.generate(**batch.inputs, **options)
        cuts = [(cut.layer, cut.kept) for cut in trace.cuts]
        assert all(len(kept) == len(whole.visual) for _, kept in cuts)
        with masked(model, whole, hidden_keys(whole, trace.cuts)):
            torch.manual_seed(5)
            expected = model.generate(**batch.inputs, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
def test_prompt_lookup_decoding_gives_the_greedy_tokens(family):
    model = zoo.build(family)
    batch = zoo.batch(family)
    one = _first_sample(family, batch)
    with torch.no_grad(), prunekit.Pruner(**PRUNER)(model):
        greedy = model.generate(**one, max_new_tokens=12, do_sample=False)
        looked_up = model.generate(**one, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, looked_up)


def _first_sample(family: str, batch: zoo.Batch) -> dict[str, torch.Tensor]:
    """The first sample's inputs; patches of pictures come in one long list."""
    count = len(batch.visual)
    return {k: v[: len(v) // count] for k, v in batch.inputs.items()}


def test_a_static_cache_is_refused_in_one_line():
    model, batch = tiny_model("llava"), make_batch("llava")
    with torch.no_grad(), prunekit.Pruner()(model), pytest.raises(ValueError, match="use a DynamicCache") as caught:
        model.generate(**batch.inputs, max_new_tokens=3, cache_implementation="static")
    assert "\n" not in str(caught.value)


def test_an_offloaded_cache_is_refused_in_one_line():
    from transformers import DynamicCache

    model, batch, cache = tiny_model("llava"), make_batch("llava"), DynamicCache()
    cache.offloading = True  # made as one it needs a GPU
    with torch.no_grad(), prunekit.Pruner()(model), pytest.raises(ValueError, match="offloading"):
        model(**batch.inputs, past_key_values=cache)


def test_a_quantized_cache_is_refused():
    from transformers import cache_utils

    class Quantized(cache_utils.QuantizedLayer):
        def _quantize(self, tensor, axis):
            return tensor

        def _dequantize(self, tensor):
            return tensor

    cache = cache_utils.Cache(layers=[Quantized() for _ in range(6)])
    model, batch = tiny_model("llava"), make_batch("llava")
    with torch.no_grad(), prunekit.Pruner()(model), pytest.raises(ValueError, match="Quantized"):
        model(**batch.inputs, past_key_values=cache)


TURNS = ("llava", "qwen2_vl", "gemma3", "gemma4", "unlimited_ocr", "qwen3_5", "minimax_m3_vl")


@pytest.mark.parametrize("family", TURNS)
def test_a_second_turn_goes_on_where_the_first_ended(family):
    """Several tokens at once on a pruned cache equal the same tokens one by one."""
    if family not in zoo.NAMES:
        pytest.skip("this transformers has no such family")
    model, batch = zoo.build(family), zoo.batch(family)
    more = torch.randint(4, 100, (3, 3), generator=torch.Generator().manual_seed(7))
    with torch.no_grad(), prunekit.Pruner(**PRUNER)(model, prompt="all"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        together = model(input_ids=more, past_key_values=cache, use_cache=True).logits
        cache = model(**batch.inputs, use_cache=True).past_key_values
        alone = []
        for n in range(3):
            step = model(input_ids=more[:, n : n + 1], past_key_values=cache, use_cache=True)
            alone.append(step.logits[:, -1])
    assert (together - torch.stack(alone, 1)).abs().max() < 1e-4


def test_steps_of_several_tokens_are_refused_where_they_would_be_wrong():
    if "glm5_next" not in zoo.NAMES:
        pytest.skip("this transformers has no such family")
    model, batch = zoo.build("glm5_next"), zoo.batch("glm5_next")
    with torch.no_grad(), prunekit.Pruner(**PRUNER)(model, prompt="all"):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="one token at a time"):
            model(input_ids=torch.full((3, 2), 5), past_key_values=cache, use_cache=True)
