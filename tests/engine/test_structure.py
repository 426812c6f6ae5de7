"""What makes pruning cheap, held by what is computed and allocated, not by the clock."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch

import prunekit
from prunekit.bench.memory import AllocationMeter, kv_bytes
from prunekit.engine.session import Session
from prunekit.families import make_family
from prunekit.tensors import attention
from prunekit.views.doubts import Doubt
from zoo.tiny import DEPTH, FAMILIES, IMAGE, Batch, make_batch, tiny_batch, tiny_model

LONG = 40  # images of 16 tokens: a sequence so long that S² is more than anything else in a tiny model


def long_batch(text: int = 12, images: int = LONG) -> Batch:
    g = torch.Generator().manual_seed(0)
    words = torch.randint(2, 80, (4 + text,), generator=g).tolist()
    ids = torch.tensor([[*words[:4], *([IMAGE] * 16 * images), *words[4:]]])
    return tiny_batch({"input_ids": ids, "pixel_values": torch.randn(images, 3, 16, 16, generator=g)})


def one_shot(layer: int = 2):
    return prunekit.create("schedule", "one_shot", layer=layer)


def metered(model, inputs, pruner=None, **more):
    with torch.no_grad(), nullcontext() if pruner is None else pruner(model), AllocationMeter() as meter:
        model(**inputs, logits_to_keep=1, **more)
    return meter


SCORERS = {
    "text": ("instruction", "multi"),
    "last": (prunekit.create("scorer", "instruction", rows="last"), "single"),
    "all": (prunekit.create("scorer", "instruction", rows="all"), "single"),
    "visual": ("visual", "multi"),
    "heads": (prunekit.create("scorer", "visual", heads="max"), "single"),
    "rollout": ("instruction", "rollout"),
    "rollout of visual": ("visual", "rollout"),
}


class TestMemory:
    @pytest.mark.parametrize("name", [name for name in SCORERS if name != "rollout of visual"])
    def test_no_matrix_of_s_by_s(self, name, monkeypatch):
        """However many queries a scorer asks for: they come in blocks."""
        monkeypatch.setattr(attention, "BLOCK", 2**15)
        model, batch = tiny_model("llava"), long_batch()
        size = batch.ids.shape[1]
        meter = metered(model, batch.inputs, prunekit.Pruner(*SCORERS[name], one_shot()))
        assert metered(model, batch.inputs).largest < size**2 / 4
        # What a query set may see is one bool an entry at most, [q, S] of a block.
        assert meter.largest < size**2 / 4

    def test_the_meter_sees_such_a_matrix_where_there_is_one(self):
        batch = long_batch()
        size = batch.ids.shape[1]
        assert metered(tiny_model("llava", "eager"), batch.inputs).largest >= 4 * size**2

    def test_rollout_holds_the_rows_of_its_queries_and_no_more(self, monkeypatch):
        """Of every visual token one row, without the heads: the rows of the window are multiplied backwards."""
        monkeypatch.setattr(attention, "BLOCK", 2**15)
        model, batch = tiny_model("llava"), long_batch()
        size, visual = batch.ids.shape[1], 16 * LONG
        meter = metered(model, batch.inputs, prunekit.Pruner("visual", "rollout", one_shot(4)))
        assert meter.largest <= visual * size

    def test_row_scorers_need_queries_times_keys(self):
        """Peak memory of scoring by the instruction grows with its length, not with the square of the sequence."""
        model = tiny_model("llava")
        batch = long_batch(text=12)
        size, heads = batch.ids.shape[1], 4
        more = metered(model, batch.inputs, prunekit.Pruner("instruction", "single", one_shot(4), keep_ratio=1.0)).peak
        assert more - metered(model, batch.inputs).peak < 4 * 4 * heads * 12 * size + 100_000

    @pytest.mark.parametrize("name", SCORERS)
    def test_blocks_give_the_same_scores(self, name, monkeypatch):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        found = []
        for size in (attention.BLOCK, 700, 1):
            monkeypatch.setattr(attention, "BLOCK", size)
            with torch.no_grad(), prunekit.Pruner(*SCORERS[name], "progressive", keep_ratio=0.3)(model) as trace:
                model(**batch.inputs)
            found.append([cut.scores.nan_to_num(-1) for cut in trace.cuts])
        for other in found[1:]:
            assert all((a - b).abs().max() < 1e-6 for a, b in zip(found[0], other, strict=True))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_bytes_of_the_cache(self, family):
        model, batch = tiny_model(family), make_batch(family)
        visual, size = int(batch.visual[0].sum()), batch.ids.shape[1]
        with torch.no_grad(), prunekit.Pruner(keep_ratio=0.25)(model):
            cache = model(**batch.inputs, use_cache=True).past_key_values
        left = [size] * 2 + [size - visual + round(0.5 * visual)] + [size - visual + round(0.25 * visual)] * 3
        assert kv_bytes(cache) == sum(3 * n * 2 * 2 * 8 * 4 for n in left)  # samples, k and v, heads, width, bytes


class TestWork:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gathers_are_made_once_a_cut(self, family):
        """However many layers follow: the hidden states, rotary embeddings and positions are gathered once."""
        model, batch = tiny_model(family), make_batch(family)
        found = []
        for layer in (2, 5):
            calls = metered(model, batch.inputs, prunekit.Pruner("random", "single", one_shot(layer))).calls
            found.append({k: n for k, n in calls.items() if "index" in k or "gather" in k})
        assert found[0] == found[1]
        dense = metered(model, batch.inputs).calls
        assert sum(found[0].values()) - sum(n for k, n in dense.items() if "index" in k or "gather" in k) < 16

    def test_gathers_of_masks_are_made_once_a_cut(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        found = []
        for layer in (2, 5):
            calls = metered(model, batch.inputs, prunekit.Pruner("random", "single", one_shot(layer))).calls
            found.append({k: n for k, n in calls.items() if "index" in k or "gather" in k})
        assert found[0] == found[1]

    def test_scoring_multiplies_queries_and_keys_once(self):
        model, batch = tiny_model("llava"), make_batch("llava")

        def products(pruner):
            return sum(n for k, n in metered(model, batch.inputs, pruner).calls.items() if "bmm" in k)

        dense = products(None)
        assert products(prunekit.Pruner("instruction", "single", one_shot(4))) == dense + 1
        assert products(prunekit.Pruner("instruction", "multi", one_shot(4))) == dense + 4
        assert products(prunekit.Pruner("instruction", "multi", "progressive")) == dense + 3  # layers 0..2, each once

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_padding_masks_stay_none(self, family):
        model, batch = tiny_model(family), make_batch(family)
        seen = []
        for layer in model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(
                lambda m, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
            )
        with torch.no_grad(), prunekit.Pruner(keep_ratio=0.25)(model):
            model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
        assert len(seen) == 3 * DEPTH and all(mask is None for mask in seen)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_decode_step_computes_what_a_dense_one_does(self, family):
        """Not one operation more in any layer, while there is no mask."""
        model, batch = tiny_model(family), make_batch(family)
        step = {"input_ids": torch.full((3, 1), 5), "use_cache": True}
        found = []
        for pruner in (None, prunekit.Pruner(keep_ratio=0.25)):
            with torch.no_grad(), nullcontext() if pruner is None else pruner(model):
                cache = model(**batch.inputs, use_cache=True).past_key_values
                model(**step, past_key_values=cache)
                with AllocationMeter() as meter:
                    model(**step, past_key_values=cache)
            found.append(meter.calls)
        assert found[0] == found[1]


READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero")


@contextmanager
def no_reading(model):
    """From the decoder's first layer to its last nothing may look at a tensor's values on the host."""
    layers, patch = model.get_decoder().layers, pytest.MonkeyPatch()

    def forbid(*_):
        for name in READS:

            def raises(self, *args, name=name, **kwargs):
                raise AssertionError(f"Tensor.{name} between the first layer and the last")

            patch.setattr(torch.Tensor, name, raises)

    first = layers[0].register_forward_pre_hook(forbid)
    last = layers[-1].register_forward_hook(lambda *_: patch.undo())
    try:
        yield
    finally:
        first.remove()
        last.remove()
        patch.undo()


class TestNoWaiting:
    @pytest.mark.parametrize("name", SCORERS)
    @pytest.mark.parametrize("padding", ["none", "left"])
    def test_nothing_in_the_decoder_reads_the_device(self, name, padding):
        model, batch = tiny_model("llava"), make_batch("llava", padding)
        pruner = prunekit.Pruner(*SCORERS[name], "progressive", keep_ratio=0.3)
        with torch.no_grad(), pruner(model) as trace, no_reading(model):
            model(**batch.inputs)
        assert len(trace.cuts) == 2

    def test_the_guard_catches_a_scorer_that_reads(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with (
            torch.no_grad(),
            prunekit.Pruner("random", "single", "one_shot")(model),
            no_reading(model),
            pytest.raises(ValueError, match=r"AssertionError: Tensor\.cpu"),
        ):
            model(**batch.inputs)

    def test_nan_scores_of_an_accelerator_are_said_at_the_next_pass_or_at_removal(self):
        """There the check waits for the device, so a prefill leaves it to whoever waits anyway."""
        model, batch = tiny_model("llava"), make_batch("llava")
        session = Session(prunekit.Pruner().plan(make_family(model)), make_family(model))
        session.thread.doubts = (Doubt("NaN scores at the cut before layer 2", torch.tensor([False, True, False])),)
        handle = prunekit.Handle(session)
        with pytest.raises(ValueError, match=r"layer 2, samples \[1\]"):
            handle.remove()
        handle.remove()
        session.install()
        session.thread.doubts = (Doubt("NaN scores at the cut before layer 2", torch.tensor([True, False])),)
        with torch.no_grad(), pytest.raises(ValueError, match=r"layer 2, samples \[0\]"):
            model(**batch.inputs)
        session.remove()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize("name", SCORERS)
    def test_cuda_never_waits_between_the_first_layer_and_the_last(self, name):
        model = copy.deepcopy(tiny_model("llava")).cuda()
        inputs = {key: value.cuda() for key, value in make_batch("llava").inputs.items()}
        layers = model.get_decoder().layers
        start = layers[0].register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
        end = layers[-1].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        try:
            with torch.no_grad(), prunekit.Pruner(*SCORERS[name], "progressive", keep_ratio=0.3)(model) as trace:
                model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            start.remove()
            end.remove()
        assert len(trace.cuts) == 2
