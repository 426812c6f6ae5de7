"""Withdrawal: from one layer on no visual token stays, exactly."""

from __future__ import annotations

import pytest
import torch

import prunekit
import zoo
from zoo.tiny import make_batch, tiny_model


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
