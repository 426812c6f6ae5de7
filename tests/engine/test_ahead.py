"""The look ahead, family by family: what a layer would attend to equals what it does attend to where nothing goes."""

from __future__ import annotations

import pytest
import torch

import prunekit
import zoo
from prunekit.families import EXACT, make_family

NAMES = [name for name in zoo.NAMES if zoo.FAMILY[name] in EXACT]


def scores(model, batch, fusion: str, layer: int) -> torch.Tensor:
    """The last token's row that decides a cut before ``layer``, at keep_ratio=1."""
    schedule = prunekit.create("schedule", "one_shot", layer=layer)
    scorer = prunekit.create("scorer", "instruction", rows="last")
    with torch.no_grad(), prunekit.Pruner(scorer, fusion, schedule, keep_ratio=1.0)(model) as trace:
        model(**batch.inputs)
    return trace.cuts[0].scores


def check(name: str) -> None:
    if name in zoo.BROKEN:
        pytest.skip(zoo.BROKEN[name])
    model, batch = zoo.build(name, zoo.SUPPORTS[name][-1]), zoo.batch(name, "left")
    family = make_family(model)
    layer = next(k for k in range(1, family.depth - 1) if family.attends(k) and family.key_layers[k] == k)
    ahead, real = (scores(model, batch, fusion, at) for fusion, at in (("ahead", layer), ("single", layer + 1)))
    assert torch.equal(ahead.isnan(), real.isnan())
    assert (ahead - real).nan_to_num().abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES[::6])
def test_equals_the_real_pass(name):
    check(name)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_real_pass_everywhere(name):
    check(name)


def test_layers_without_attention_are_refused_in_one_line():
    if "qwen3_5" not in NAMES:
        pytest.skip("this transformers has no such family")
    model = zoo.build("qwen3_5")
    layer = next(k for k in range(4) if not make_family(model).attends(k))
    schedule = prunekit.create("schedule", "one_shot", layer=layer)
    with pytest.raises(prunekit.PrunekitError, match=r"fusion 'ahead' reads layers .* which have no attention"):
        prunekit.Pruner("instruction", "ahead", schedule).apply(model)


def test_a_layer_that_borrows_keys_is_refused_in_one_line():
    lenders = [n for n in NAMES if zoo.FAMILY[n] in ("gemma3n", "gemma4")]
    if not lenders:
        pytest.skip("this transformers has no such family")
    model = zoo.build(lenders[0])
    family = make_family(model)
    layer = next(k for k in range(family.depth) if family.key_layers[k] != k)
    schedule = prunekit.create("schedule", "one_shot", layer=layer)
    with pytest.raises(prunekit.PrunekitError, match=f"layer {layer} borrows the keys of layer"):
        prunekit.Pruner("instruction", "ahead", schedule).apply(model)
