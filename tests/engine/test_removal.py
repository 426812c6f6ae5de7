"""Removal ≡ masking: a pruned model equals the dense one whose later layers cannot see the tokens that went."""

from __future__ import annotations

import itertools

import pytest
import torch

import prunekit
import zoo
from reference import dense_with_hidden_keys, hidden_keys
from zoo.tiny import DEPTH, FAMILIES, PADDINGS, Batch, make_batch, tiny_batch, tiny_model, two_images_and_none

TOLERANCE = 1e-4
CASES = list(itertools.product(FAMILIES, ("eager", "sdpa"), PADDINGS, ("one_shot", "progressive")))


def pruned_run(model, batch: Batch, pruner: prunekit.Pruner, new: int = 0):
    """Logits of the prompt, greedy tokens, logits of each step, the cache and the trace of a pruned run."""
    with torch.no_grad(), pruner(model) as trace:
        prompt = model(**batch.inputs).logits
        if not new:
            return prompt, None, None, None, trace
        made = model.generate(
            **batch.inputs, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    tokens = made.sequences[:, batch.ids.shape[1] :]
    return prompt, tokens, torch.stack(made.logits, 1), made.past_key_values, trace


@pytest.mark.parametrize(("family", "attn", "padding", "schedule"), CASES)
def test_forward_and_generate_equal_masking(family, attn, padding, schedule):
    model, batch = tiny_model(family, attn), make_batch(family, padding, seed=len(padding))
    pruner = prunekit.Pruner(schedule=schedule, keep_ratio=0.4)
    prompt, tokens, steps, cache, trace = pruned_run(model, batch, pruner, new=4)

    reference, hidden = tiny_model(family, "eager"), hidden_keys(batch, trace.cuts)
    expected, _, _ = dense_with_hidden_keys(reference, batch, hidden)
    text = batch.mask & ~batch.visual
    assert (prompt - expected)[text].abs().max() < TOLERANCE
    with torch.no_grad():  # else the comparison would prove nothing
        assert (reference(**batch.inputs).logits - expected)[text].abs().max() > 1e-2

    _, expected_tokens, expected_steps = dense_with_hidden_keys(reference, batch, hidden, new=4)
    assert torch.equal(tokens, expected_tokens)
    assert (steps - expected_steps).abs().max() < TOLERANCE

    assert_cache_holds_only_what_stays(cache, trace, batch, new=4, padding=padding)


def assert_cache_holds_only_what_stays(cache, trace, batch, new, padding):
    size, counts = batch.ids.shape[1], batch.visual.sum(1)
    for layer in range(DEPTH):
        cut = next((c for c in reversed(trace.cuts) if c.layer <= layer), None)
        real = batch.mask.sum(1) - (0 if cut is None else counts - cut.kept.sum(1))
        assert trace.tokens_per_layer[layer].tolist() == real.tolist()
        # Generation reads the last position, so a right-padded sample carries that one slot along.
        carried = real + (~batch.mask[:, -1]).long()
        expected = size if cut is None else int(carried.max())
        assert cache.layers[layer].keys.shape[-2] == expected + new - 1
        assert cache.get_seq_length(layer) == size + new - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_sees_only_what_is_left(family):
    """Measured apart from the trace: the rows that reach each layer."""
    model, batch = tiny_model(family), make_batch(family, "left")
    seen: dict[int, int] = {}
    layers = model.get_decoder().layers
    pruner = prunekit.Pruner(schedule=prunekit.create("schedule", "progressive", layers=[2, 4]), keep_tokens=3)
    with torch.no_grad(), pruner(model) as trace:
        handles = [
            layer.self_attn.register_forward_pre_hook(
                lambda m, a, k, i=i: seen.update({i: k["hidden_states"].shape[1]}), with_kwargs=True
            )
            for i, layer in enumerate(layers)
        ]
        model(**batch.inputs)
        for handle in handles:
            handle.remove()
    assert [c.kept.sum(1).tolist() for c in trace.cuts][-1] == [3, 3, 3]
    text = (batch.mask & ~batch.visual).sum(1)
    assert [seen[i] for i in (0, 1)] == [batch.ids.shape[1]] * 2
    assert [seen[i] for i in (4, 5)] == [int(text.max()) + 3] * 2
    assert seen[5] < seen[3] < seen[1]


@pytest.mark.parametrize("padding", PADDINGS)
def test_keep_ratio_one_changes_nothing(padding):
    for family, schedule in itertools.product(FAMILIES, ("one_shot", "progressive")):
        model, batch = tiny_model(family), make_batch(family, padding)
        with torch.no_grad():
            dense = model(**batch.inputs).logits
            prompt, *_ = pruned_run(model, batch, prunekit.Pruner(schedule=schedule, keep_ratio=1.0))
        assert (prompt - dense).abs().max() <= 1e-6


def check_hidden(batch, trace, prompt, tokens):
    """Logits and three tokens are those of the dense model that cannot see what went."""
    reference, hidden = tiny_model("llava", "eager"), hidden_keys(batch, trace.cuts)
    expected, _, _ = dense_with_hidden_keys(reference, batch, hidden)
    _, expected_tokens, _ = dense_with_hidden_keys(reference, batch, hidden, new=3)
    text = batch.mask & ~batch.visual
    assert (prompt - expected)[text].abs().max() < TOLERANCE
    assert torch.equal(tokens, expected_tokens)


@pytest.mark.parametrize("layer", range(DEPTH))
def test_a_cut_before_every_layer_is_exact(layer):
    """Also before layer 0, for a scorer that needs no layer below the cut."""
    batch = make_batch("llava", "left")
    pruner = prunekit.Pruner(scorer="random", schedule=prunekit.create("schedule", "one_shot", layer=layer))
    prompt, tokens, _, _, trace = pruned_run(tiny_model("llava"), batch, pruner, new=3)
    check_hidden(batch, trace, prompt, tokens)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_different_numbers_of_images_in_a_batch(attn):
    batch = two_images_and_none()
    prompt, tokens, _, _, trace = pruned_run(tiny_model("llava", attn), batch, prunekit.Pruner(keep_ratio=0.25), new=3)
    assert trace.cuts[-1].kept.sum(1).tolist() == [8, 4, 0]
    check_hidden(batch, trace, prompt, tokens)


def test_ragged_counts_without_any_padding_in_the_batch():
    """Equal lengths, different visual counts: after the cut rows are ragged, though no mask was given."""
    image = [90] * 16
    ids = torch.tensor([[5, *image, *image, 6, 7], [9, *image, *range(20, 38)]])
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    batch = tiny_batch({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})
    for attn in ("eager", "sdpa"):
        prompt, tokens, _, _, trace = pruned_run(
            tiny_model("llava", attn), batch, prunekit.Pruner(keep_ratio=0.25), new=3
        )
        reference, hidden = tiny_model("llava", "eager"), hidden_keys(batch, trace.cuts)
        expected, _, _ = dense_with_hidden_keys(reference, batch, hidden)
        _, expected_tokens, _ = dense_with_hidden_keys(reference, batch, hidden, new=3)
        assert (prompt - expected)[~batch.visual].abs().max() < TOLERANCE
        assert torch.equal(tokens, expected_tokens)


def test_beam_search_and_returned_sequences_reorder_the_pruned_cache():
    """Beams must equal those of a model that never drops anything but is masked: here, of single-sample runs."""
    model, batch = tiny_model("llava"), two_images_and_none()
    inputs = {k: v for k, v in batch.inputs.items()}
    pruner = prunekit.Pruner(keep_ratio=0.25)
    options = dict(max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    with torch.no_grad(), pruner(model):
        together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        alone = []
        for row, images in ((0, slice(0, 2)), (1, slice(2, 3))):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=inputs["pixel_values"][images],
                **options,
            )
            alone.append(made[:, ids.shape[1] :])
    assert torch.equal(together[:4], torch.cat(alone))


def test_renumbered_positions_equal_a_dense_run_with_those_positions():
    """positions=renumber before layer 0 is the dense model on the shortened sequence."""
    model, batch = tiny_model("llava"), make_batch("llava", "none")
    pruner = prunekit.Pruner(
        scorer="random",
        schedule=prunekit.create("schedule", "one_shot", layer=0),
        keep_ratio=0.25,
        positions="renumber",
    )
    prompt, tokens, _, _, trace = pruned_run(model, batch, pruner, new=3)
    with torch.no_grad():
        embeds = model.model.get_input_embeddings()(batch.ids)
        features = torch.cat(list(model.get_image_features(batch.inputs["pixel_values"]).pooler_output))
        embeds = embeds.masked_scatter(batch.visual[..., None], features)
        stays = torch.ones_like(batch.visual)
        for b in range(3):
            stays[b, batch.visual[b].nonzero()[:, 0][~trace.cuts[0].kept[b]]] = False
        short = torch.stack([embeds[b, stays[b]] for b in range(3)])
        expected = model(inputs_embeds=short).logits
        made = model.generate(inputs_embeds=short, max_new_tokens=3, do_sample=False)
    got = torch.stack([prompt[b, stays[b]] for b in range(3)])
    assert (got - expected).abs().max() < TOLERANCE
    assert torch.equal(tokens, made)


def test_nothing_visual_goes_on():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    pruner = prunekit.Pruner("random", "single", prunekit.create("schedule", "withdraw", layer=2))
    with torch.no_grad(), pruner(model) as trace:
        out = model(**batch.inputs)
    text = (batch.mask & ~batch.visual).sum(1)
    whole = batch.mask.sum(1)
    assert trace.cuts[0].kept.sum() == 0
    assert trace.tokens_per_layer.tolist() == [whole.tolist()] * 2 + [text.tolist()] * 4
    lengths = [layer.keys.shape[2] for layer in out.cache.layers]
    assert max(lengths[2:]) <= int(text.max()) + 1 < min(lengths[:2])


def test_as_the_last_step_of_several():
    model, batch = tiny_model("llava"), make_batch("llava")
    schedule = prunekit.create("schedule", "progressive", layers=[1, 3, 5], ratios=[0.5, 0.5, 0])
    with torch.no_grad(), prunekit.Pruner("random", "single", schedule)(model) as trace:
        model(**batch.inputs)
    assert [cut.kept.sum(1).tolist() for cut in trace.cuts] == [[8] * 3, [4] * 3, [0] * 3]


def test_half_of_the_depth_by_default():
    pruner = prunekit.Pruner(schedule="withdraw")
    assert pruner.keep_ratio == 0 and pruner.schedule.cuts(32, 0.0) == (prunekit.Cut(16, 0.0),)
    assert prunekit.Pruner(**{**pruner.components, "keep_ratio": 0}).keep_ratio == 0


def test_saved_and_read(tmp_path):
    prunekit.Pruner(schedule="withdraw").save(tmp_path)
    assert prunekit.Pruner.load(tmp_path).keep_ratio == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.5}, "schedule 'withdraw' keeps no visual token: keep_ratio=0.5 cannot be met"),
        ({"keep_tokens": 8}, "keep_tokens=8 cannot be met"),
        ({"budget": "final:5"}, "budget=final:5 cannot be met"),
        ({"reducer": "merge"}, "keeps no visual token that reducer 'merge' could merge into"),
    ],
)
def test_what_cannot_be_asked(options, message):
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.Pruner(schedule="withdraw", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("withdraw", {"layer": 0}, "schedule.layer must be at least 1"),
        ("progressive", {"layers": [1, 2], "ratios": [0, 0.5]}, "the last may be 0"),
        ("encoder", {"layers": [0, 1], "ratios": [0.5, 0]}, "inside the encoder a patch must stay"),
        ("groups", {"vision": True, "ratios": [0.5, 0.5, 0.5, 0]}, "none may be 0"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.create("schedule", name, **options)


def test_keep_ratio_zero_needs_a_schedule_that_withdraws():
    with pytest.raises(prunekit.PrunekitError, match=r"keep_ratio must lie in \(0, 1\], not 0"):
        prunekit.Pruner(keep_ratio=0)


def test_a_layer_that_the_model_does_not_have():
    with pytest.raises(prunekit.PrunekitError, match="layer 9 is not in"):
        prunekit.Pruner(schedule=prunekit.create("schedule", "withdraw", layer=9)).apply(zoo.build("llava"))
