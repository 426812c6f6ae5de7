"""Proportional attention in the decoder: one token of size s, its logarithm added, is s copies of it at one place.

The reference knows neither sizes nor logarithms. Nothing goes: all that was merged stands on as copies of the mean,
which see each other, have the rotary embedding of the token whose name they bear, and are seen by whoever sees it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import prunekit
import zoo
from prunekit.families import make_family
from prunekit.vllm.options import servable
from reference import generate, hidden_keys, masked, positions
from removal import NAMES, attentions
from zoo.tiny import PADDINGS, Batch, make_batch, tiny_model, two_images_and_none

TOLERANCE = 1e-4
LONGEST = 5


def names_of(batch: Batch, cut: Any, length: int) -> torch.Tensor:
    """The dense index under whose name each token [B, S'] stands after a cut, -1 where it is lost."""
    names = torch.arange(length).repeat(len(batch.visual), 1)
    for b in range(len(names)):
        places = batch.visual[b].nonzero()[:, 0]
        sources = cut.sources[b, : len(places)]
        names[b, places] = torch.where(sources < 0, -1, places[sources.clamp(min=0)])
    return names


@contextmanager
def copies(model: Any, batch: Batch, real: torch.Tensor, cuts: list[Any]) -> Iterator[None]:
    """The dense model [B, S'] in which, from each cut on, all that lives under one name is the mean of itself."""
    length, handles = real.shape[1], []
    places = torch.arange(length).repeat(len(real), 1)

    def hook(names: torch.Tensor, first: bool) -> Any:
        shown = real & (names >= 0)
        allowed = (names[:, None, :] <= names[:, :, None]) & shown[:, None, :]
        additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]

        def replace(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0].clone()
            for b, name in itertools.product(range(len(real)), range(length)) if first else ():
                members = names[b] == name
                if members.sum() > 1:
                    hidden[b, members] = hidden[b, members].mean(0)
            turned = tuple(
                torch.stack([x.expand(len(real), -1, -1)[b, names[b].clamp(min=0)] for b in range(len(real))])
                for x in kwargs["position_embeddings"]
            )
            return (hidden,), {**kwargs, "attention_mask": additive, "position_embeddings": turned}

        return replace

    for index, layer in enumerate(model.get_decoder().layers):
        cut = next((c for c in reversed(cuts) if c.layer <= index), None)
        names = places if cut is None else names_of(batch, cut, length)
        first = cut is not None and cut.layer == index
        handles.append(layer.register_forward_pre_hook(hook(names, first), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_copies(model: Any, batch: Batch, cuts: list[Any], new: int = 0) -> torch.Tensor:
    """Logits of the prompt [B, S, V], or of each of ``new`` greedy steps [B, new, V], without a cache."""
    inputs, steps = {**batch.inputs}, []
    for _ in range(max(1, new)):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        numbered = {**inputs, "position_ids": positions(model, batch, ids.shape[1], bool(new))}
        with torch.no_grad(), copies(model, batch, mask.bool(), cuts):
            logits = model(**numbered, use_cache=False).logits
        steps.append(logits[:, -1])
        inputs["input_ids"] = torch.cat([ids, steps[-1].argmax(-1)[:, None]], 1)
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(steps, 1) if new else logits


def merging(layers: list[int], proportional: bool = True, **options: Any) -> prunekit.Pruner:
    schedule = prunekit.create("schedule", "progressive", layers=layers)
    reducer = prunekit.create("reducer", "merge", proportional=proportional)
    return prunekit.Pruner("random", "single", schedule, reducer=reducer, **{"keep_ratio": 0.3, **options})


def runs(model: Any, batch: Batch, pruner: prunekit.Pruner, new: int = 0, **more: Any):
    """Logits of the prompt and, greedily, of each step, and the trace."""
    with torch.no_grad(), pruner(model) as trace:
        prompt = model(**batch.inputs).logits
        if not new:
            return prompt, None, trace
        options = dict(do_sample=False, output_logits=True, return_dict_in_generate=True)
        output = model.generate(**batch.inputs, max_new_tokens=new, **options, **more)
    return prompt, torch.stack(output.logits, 1), trace


@pytest.mark.parametrize("layers", [[2, 4], [0]])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_merged_token_counts_like_its_copies(family, attn, padding, layers):
    batch = make_batch(family, padding, seed=len(padding) + len(layers))
    prompt, steps, trace = runs(tiny_model(family, attn), batch, merging(layers), new=LONGEST)
    reference, text = tiny_model(family, "eager"), batch.mask & ~batch.visual
    assert (prompt - with_copies(reference, batch, trace.cuts))[text].abs().max() < TOLERANCE
    assert (steps - with_copies(reference, batch, trace.cuts, LONGEST)).abs().max() < TOLERANCE
    plain, plain_steps, _ = runs(tiny_model(family, attn), batch, merging(layers, proportional=False), new=LONGEST)
    assert (prompt - plain)[text].abs().max() > 1e-2 < (steps - plain_steps).abs().max()  # else nothing is shown


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_pact_counts_its_clusters_by_their_size(family):
    """Also of clusters beside tokens that are lost."""
    batch, schedule = make_batch(family, "left", seed=4), prunekit.create("schedule", "one_shot", layer=2)
    selector = prunekit.create("selector", "dbdpc", important=0.5, cutoff=0.2, reach=1.0)
    pruner = prunekit.method("pact", schedule=schedule, selector=selector, keep_ratio=0.6)
    prompt, steps, trace = runs(tiny_model(family), batch, pruner, new=3)
    (cut,) = trace.cuts
    gone = ~cut.kept & torch.stack([torch.arange(cut.kept.shape[1]) < n for n in batch.visual.sum(1)])
    assert (gone & (cut.sources < 0)).any() and (gone & (cut.sources >= 0)).any()
    reference, text = tiny_model(family, "eager"), batch.mask & ~batch.visual
    assert (prompt - with_copies(reference, batch, trace.cuts))[text].abs().max() < TOLERANCE
    assert (steps - with_copies(reference, batch, trace.cuts, 3)).abs().max() < TOLERANCE


def test_unequal_numbers_of_images():
    batch = two_images_and_none()
    prompt, steps, trace = runs(tiny_model("llava"), batch, merging([1, 3]), new=3)
    reference, text = tiny_model("llava", "eager"), batch.mask & ~batch.visual
    assert (prompt - with_copies(reference, batch, trace.cuts))[text].abs().max() < TOLERANCE
    assert (steps - with_copies(reference, batch, trace.cuts, 3)).abs().max() < TOLERANCE


@prunekit.register("reducer", "sized")
@dataclass
class Sized(prunekit.Reducer):
    """Tokens stay as they are, and have sizes none the less."""

    proportional: bool = True

    def reduce(self, *, tokens, sizes, kept, **rest):
        return prunekit.Reduced(tokens, torch.where(kept, sizes_of(kept), sizes))


def sizes_of(tokens: torch.Tensor) -> torch.Tensor:
    """2, 5, 3, 2, 5, 3, … for [B, N] tokens."""
    return torch.tensor([2.0, 5.0, 3.0])[torch.arange(tokens.shape[1]) % 3].expand(tokens.shape)


INDEX_TAKES_NUMBERS = "minimax_m3_vl"
"""Its index takes the reference's mask of numbers for closed keys; prunekit puts them in behind it."""


def hold_family(name: str, padding: str) -> None:
    """Sizes weigh the attention of a family as they do in its own masks, or are refused in one line."""
    model, batch = zoo.build(name, attentions(name)[0]), zoo.batch(name, padding)
    schedule = prunekit.create("schedule", "one_shot", layer=1)
    pruner = prunekit.Pruner("random", "single", schedule, reducer="sized", keep_ratio=0.5)
    try:
        handle = pruner.apply(model)
    except prunekit.PrunekitError as error:
        reasons = ("mixes tokens by more", "borrows the keys", "several attention modules", "several hidden states")
        assert any(reason in str(error) for reason in reasons), error
        return
    with torch.no_grad():
        prompt, steps = model(**batch.inputs).logits, generate(model, batch.inputs, 3)
    hidden = hidden_keys(batch, handle.trace.cuts)
    handle.remove()
    logs = torch.zeros(batch.visual.shape)
    for b, places in enumerate(row.nonzero()[:, 0] for row in batch.visual):
        logs[b, places] = sizes_of(places[None])[0].log()
    reference = zoo.build(name, attentions(name)[-1])
    with torch.no_grad(), masked(reference, batch, hidden, logs):
        expected, expected_steps = reference(**batch.inputs).logits, generate(reference, batch.inputs, 3)
    with torch.no_grad(), masked(reference, batch, hidden):
        unweighed = reference(**batch.inputs).logits
    text = batch.mask & ~batch.visual
    assert (prompt - expected)[text].abs().max() < TOLERANCE
    assert (steps - expected_steps).abs().max() < TOLERANCE
    assert (unweighed - expected)[text].abs().max() > 1e-2


CASES = [(name, ("left", "none")[place % 2]) for place, name in enumerate(NAMES) if name != INDEX_TAKES_NUMBERS]


@pytest.mark.parametrize(("name", "padding"), CASES[::6])
def test_families(name, padding):
    hold_family(name, padding)


@pytest.mark.full
@pytest.mark.parametrize(("name", "padding"), CASES)
def test_every_family(name, padding):
    if name in zoo.BROKEN:
        pytest.skip(zoo.BROKEN[name])
    hold_family(name, padding)


def test_a_later_cut_reads_attention_as_it_is_weighed():
    """Scores of the second cut are the attention of the layer before it, sizes and all."""
    batch, fusion = make_batch("llava", "left", seed=5), prunekit.create("fusion", "single")
    pruner = merging([2, 4]).replace(scorer="instruction", fusion=fusion)
    _, _, trace = runs(tiny_model("llava"), batch, pruner)
    first, second = trace.cuts
    model = tiny_model("llava", "eager")
    with torch.no_grad(), copies(model, batch, batch.mask, [first]):
        attention = model(**batch.inputs, use_cache=False, output_attentions=True).attentions[3].mean(1)
    for b in range(len(attention)):
        places = batch.visual[b].nonzero()[:, 0].tolist()
        text = [i for i in range(places[-1] + 1, batch.ids.shape[1]) if batch.mask[b, i]]
        for number in first.kept[b].nonzero()[:, 0].tolist():
            alike = [places[n] for n, source in enumerate(first.sources[b].tolist()) if source == number]
            weight = attention[b][text][:, alike].sum() / len(text)  # of all copies together
            assert abs(float(weight - second.scores[b, number])) < 1e-5


def test_beams_and_a_second_turn_see_the_same_weights():
    model, batch = tiny_model("llava"), make_batch("llava", "none", seed=2)
    words = torch.randint(2, 80, (3, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), merging([2, 4])(model, prompt="all"):
        options = dict(max_new_tokens=4, num_beams=3, do_sample=False)
        together = model.generate(**batch.inputs, **options)
        pixels = batch.inputs["pixel_values"]
        alone = [
            model.generate(input_ids=batch.ids[b : b + 1], pixel_values=pixels[b : b + 1], **options) for b in range(3)
        ]
        assert torch.equal(together, torch.cat(alone))
        cache = model(**batch.inputs).past_key_values
        at_once = model(input_ids=words, past_key_values=cache).logits
        cache = model(**batch.inputs).past_key_values
        one_by_one = [model(input_ids=word[:, None], past_key_values=cache).logits for word in words.T]
    assert (at_once - torch.cat(one_by_one, 1)).abs().max() < TOLERANCE


def test_refusals_in_one_line():
    model, batch = tiny_model("llava"), make_batch("llava")
    with merging([2])(model), pytest.raises(prunekit.PrunekitError, match="without the weights of sizes"):
        model.train().gradient_checkpointing_enable()
        model(**batch.inputs)
    merge = prunekit.create("reducer", "merge", proportional=True)
    with pytest.raises(prunekit.PrunekitError, match="takes no weights of tokens"):
        servable(prunekit.Pruner("random", "single", "input", reducer=merge), make_family(model), mrope=False)
    model.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(prunekit.PrunekitError, match="flash_attention_2 cannot weigh attention by sizes: use 'sdpa'"):
        merging([2]).apply(model)


def test_sizes_of_nothing_are_an_error():
    reducer = Sized()
    reducer.reduce = lambda *, tokens, sizes, **rest: prunekit.Reduced(tokens, sizes * 0)
    with pytest.raises(prunekit.PrunekitError, match="sizes that are not above 0"):
        runs(tiny_model("llava"), make_batch("llava"), merging([2]).replace(reducer=reducer))
