"""Caches, masks and sequences are recognised by what they are, whatever a model calls them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import prunekit
import zoo
from prunekit.bench.segments import cache_name
from prunekit.engine.cache import cache_in, is_cache
from prunekit.tensors.masks import padding_mask
from prunekit.tensors.sequences import CompactSequence
from reference import generate, hidden_keys, prompt_logits
from zoo.base import IMAGE, PAD, WORDS, Batch

PRUNER = prunekit.Pruner("random", "single", prunekit.create("schedule", "one_shot", layer=1), keep_ratio=0.4)


class TestCaches:
    @pytest.mark.parametrize("name", ["cache", "past_key_values", "layer_past", "state_of_the_art"])
    def test_a_cache_is_found_under_any_name(self, name):
        cache = DynamicCache()
        assert cache_in({"hidden_states": torch.zeros(1, 2, 3), "use_cache": True, name: cache}) is cache

    def test_a_cache_is_found_by_position_and_in_outputs(self):
        cache = DynamicCache()
        assert cache_in({"use_cache": True}, (torch.zeros(1, 2), None, cache)) is cache
        assert cache_in((torch.zeros(1, 2), cache)) is cache
        assert cache_in(BaseModelOutputWithPast(last_hidden_state=torch.zeros(1), **{cache_name(): cache})) is cache

    @pytest.mark.parametrize("value", [None, torch.zeros(2), True, 3, "cache", (), [], {}, {"cache": 1}], ids=str)
    def test_nothing_else_is_a_cache(self, value):
        assert not is_cache(value) and cache_in({"cache": value}) is None

    def test_a_cache_of_another_make_is_refused_and_not_overlooked(self):
        class RingCache:
            pass

        model, batch = zoo.build("llava"), zoo.batch("llava")
        with pytest.raises(prunekit.PrunekitError, match="RingCache"), PRUNER(model), torch.no_grad():
            model(**batch.inputs, **{cache_name(): RingCache()})


class TestMasks:
    SEQUENCE = CompactSequence(
        1, torch.tensor([[0, 0, 1], [1, 2, 3]]), torch.tensor([[False, True, True], [True] * 3]), (2, 3)
    )
    REAL = torch.tensor([[True] * 4, [False, True, True, True]])

    @pytest.mark.parametrize(
        ("token", "padding"),
        [(True, False), (False, True), (1, 0), (0, 1), (1.0, 0.0), (0.0, torch.finfo(torch.float32).min)],
        ids=str,
    )
    def test_padding_slots_are_marked_as_the_mask_marks_padding(self, token, padding):
        mask = torch.full((2, 4), token)
        mask[1, 0] = padding
        expected = torch.full((2, 3), token)
        expected[0, 0] = padding
        assert torch.equal(padding_mask(mask, self.SEQUENCE, self.REAL), expected)

    def forward(self, **more: Any) -> torch.Tensor:
        """Logits of a pruned LLaVA, whose Llama hands what it does not know on to its layers."""
        model, batch = zoo.build("llava"), zoo.batch("llava", "left")
        with PRUNER(model), torch.no_grad():
            return model(**batch.inputs, **more).logits

    def size(self) -> int:
        return zoo.batch("llava", "left").inputs["input_ids"].shape[1]

    @pytest.mark.parametrize(
        "shape", [(3, "S"), (1, "S"), (3, 1, "S", "S"), (1, 1, "S", "S"), (3, "S", "S"), (3, 1, 1, "S")]
    )
    @pytest.mark.parametrize("name", ["segment_mask", "seen"])
    def test_a_bool_mask_of_any_usual_shape_is_shortened(self, shape, name, monkeypatch):
        size, given = self.size(), []
        layer = type(zoo.build("llava").get_decoder().layers[0])
        plain = layer.forward

        def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append((kwargs[name].shape, hidden_states.shape[1]))
            return plain(module, hidden_states, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", forward)
        self.forward(**{name: torch.ones([size if n == "S" else n for n in shape], dtype=torch.bool)})
        assert given[-1][1] < size
        for got, length in given:
            assert all(a == length for a, n in zip(got, shape, strict=True) if n == "S"), given

    @pytest.mark.parametrize("shape", [(3, 7), (3, "S", 5), (3, 1, "S", 5), (2, 1, "S", "S")])
    def test_a_mask_of_no_known_shape_is_refused_by_module_and_name(self, shape):
        mask = torch.ones([self.size() if n == "S" else n for n in shape])
        with pytest.raises(prunekit.PrunekitError, match=r"LlamaDecoderLayer 1 .*'segment_mask' of shape") as caught:
            self.forward(segment_mask=mask)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [True, 3])
    def test_a_switch_that_is_called_a_mask_is_left_alone(self, value):
        assert torch.equal(self.forward(use_mask=value), self.forward())

    def test_a_mask_that_is_no_tensor_is_refused(self):
        with pytest.raises(prunekit.PrunekitError, match=r"'block_mask' of type object is no mask"):
            self.forward(block_mask=object())

    def test_a_per_token_tensor_whose_axis_is_unknown_is_refused(self):
        """ALiBi as Bloom has it, [B·H, 1, S]."""
        with pytest.raises(prunekit.PrunekitError, match=r"LlamaDecoderLayer 1 .*'alibi' of shape"):
            self.forward(alibi=torch.zeros(12, 1, self.size()))


@contextmanager
def decoder_forward(model: Any, change: Callable[..., Any]):
    """The decoder's forward by way of ``change(forward, **kwargs)``."""
    decoder = model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda **kwargs: change(forward, **kwargs)
    try:
        yield
    finally:
        del decoder.forward


class TestModelsThatPruneByThemselves:
    def test_a_sequence_that_is_not_as_long_as_input_ids_is_refused(self):
        model, batch = zoo.build("llava"), zoo.batch("llava")
        size = batch.inputs["input_ids"].shape[1]

        def drop(forward, **kwargs):
            short = {
                "inputs_embeds": kwargs["inputs_embeds"][:, :-3],
                "attention_mask": kwargs["attention_mask"][:, :-3],
            }
            return forward(**{**kwargs, **short})

        message = f"{size - 3} tokens reach its decoder layer 0, not {size}"
        refused = pytest.raises(prunekit.PrunekitError, match=message)
        with decoder_forward(model, drop), PRUNER(model), torch.no_grad(), refused:
            model(**batch.inputs)

    def test_layers_that_run_twice_are_refused(self):
        model, batch = zoo.build("llava"), zoo.batch("llava")

        def twice(forward, **kwargs):
            forward(**{**kwargs, "use_cache": False})
            return forward(**kwargs)

        refused = pytest.raises(prunekit.PrunekitError, match="layer 0 runs a second time")
        with decoder_forward(model, twice), PRUNER(model), torch.no_grad(), refused:
            model(**batch.inputs)

    def omni(self, rate: float) -> Any:
        """Nemotron-H Omni, which drops ``rate`` of its video tokens in its own forward."""
        if "nemotron_h_omni" not in zoo.NAMES:
            pytest.skip("this transformers has no such family")
        model = zoo.build("nemotron_h_omni")
        if not hasattr(model, "video_pruning_rate"):
            pytest.skip("this transformers has no Efficient Video Sampling")
        model.config.video_pruning_rate = model.video_pruning_rate = rate
        return model

    def clip(self, model: Any) -> Batch:
        """One video of three tubelets."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, 6, 16, 16, generator=generator)
        with torch.no_grad():
            count = sum(len(f) for f in model.get_video_features(pixels, return_dict=True).pooler_output)
        words = torch.randint(*WORDS, (1, 12), generator=generator)
        ids = torch.cat([words[:, :4], torch.full((1, count), IMAGE), words[:, 4:]], 1)
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values_videos": pixels}
        return Batch(inputs, ids == IMAGE)

    def test_its_videos_are_refused_in_one_line_that_says_what_to_set(self):
        model = self.omni(0.5)
        batch = self.clip(model)
        with torch.no_grad():
            assert model(**copy.copy(batch.inputs)).logits.shape[1] < batch.inputs["input_ids"].shape[1]
        refused = pytest.raises(prunekit.PrunekitError, match=r"config\.video_pruning_rate=0")
        with refused as caught, PRUNER(model), torch.no_grad():
            model(**batch.inputs)
        assert "\n" not in str(caught.value)
        with pytest.raises(prunekit.PrunekitError, match=r"config\.video_pruning_rate=0"), PRUNER(model):
            generate(model, batch.inputs, 2)

    @pytest.mark.parametrize("media", ["images", "videos without it"])
    def test_what_it_leaves_whole_is_pruned_exactly(self, media):
        model = self.omni(0.5 if media == "images" else 0.0)
        batch = zoo.batch("nemotron_h_omni", "left") if media == "images" else self.clip(model)
        with PRUNER(model) as trace, torch.no_grad():
            logits = model(**batch.inputs).logits
        expected, dense = prompt_logits(model, batch, hidden_keys(batch, trace.cuts)), model(**batch.inputs).logits
        text = batch.mask & ~batch.visual
        assert (logits - expected)[text].abs().max() < 1e-4 < 1e-3 < (dense - expected)[text].abs().max()
