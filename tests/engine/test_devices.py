"""A model over several devices, by accelerate's hooks: pruned, it gives what it gives on one."""

from __future__ import annotations

import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

import prunekit
import zoo
from devices import Machine, Placed
from prunekit.families import make_family
from zoo.tiny import make_batch, tiny_model

FIRST, SECOND = "xla:0", "xla:1"


def placing(model, split: int) -> dict[str, str]:
    """A device map: layers from ``split`` on, and the norm after them, on the second device; the head may share its
    weights with the embeddings and stays with them."""
    layers = {id(layer): index for index, layer in enumerate(make_family(model).layers)}
    found: dict[str, str] = {}

    def place(name: str, module: torch.nn.Module) -> None:
        if id(module) in layers:
            found[name] = FIRST if layers[id(module)] < split else SECOND
        elif not any(id(inner) in layers for inner in module.modules()):
            found[name] = SECOND if name.endswith("language_model.norm") else FIRST
        else:
            found.update({f"{name}.{key}".lstrip("."): FIRST for key, _ in module.named_parameters(recurse=False)})
            for key, inner in module.named_children():
                place(f"{name}.{key}".lstrip("."), inner)

    place("", model)
    return found


def spread(model, split: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single parameters are no modules
        return dispatch_model(model, device_map=placing(model, split), main_device=FIRST, force_hooks=True)


def answers(model, pruner, batch, steps: int = 4):
    """Logits of the prefill, greedy tokens, and what stayed at each cut."""
    with pruner(model) as trace, torch.no_grad():
        logits = model(**batch.inputs).logits
    kept, tokens = [cut.kept.tolist() for cut in trace.cuts], trace.tokens_per_layer.tolist()
    with pruner(model), torch.no_grad():
        new = model.generate(**batch.inputs, max_new_tokens=steps, do_sample=False)
    return logits, new.tolist(), kept, tokens


def check_equal(found, expected):
    # Where tokens are gone and at padding nothing is promised, and both are the same all the same.
    assert (found[0].to("cpu") - expected[0]).abs().max() < 1e-4
    assert found[1:] == expected[1:]


def progressive(**options):
    return prunekit.Pruner(schedule=prunekit.create("schedule", "progressive", layers=[2, 4]), **options)


PRUNERS = {
    "multi": progressive,
    "tome": lambda: progressive(scorer="tome", reducer="merge"),
    "rollout": lambda: progressive(fusion="rollout"),
    "ahead": lambda: progressive(fusion="ahead"),
    "renumber": lambda: progressive(positions="renumber"),
    "visionzip": lambda: prunekit.method("visionzip"),
    "pyramiddrop": lambda: prunekit.method("pyramiddrop"),
    "sparsevlm": lambda: prunekit.method("sparsevlm"),
}


@pytest.mark.parametrize(
    ("name", "split"), [*((name, 3) for name in PRUNERS), ("multi", 1), ("tome", 1), ("rollout", 1)]
)
def test_over_two_devices_it_finds_what_it_does_on_one(name, split):
    """Cuts and their evidence lie before, on and behind the border of the devices."""
    model, batch, pruner = tiny_model("llava"), make_batch("llava", "left"), PRUNERS[name]()
    expected = answers(model, pruner, batch)
    with Machine():
        found = answers(spread(model, split), pruner, batch)
    check_equal(found, expected)


@pytest.mark.parametrize("padding", ["none", "right"])
def test_ragged_batches_over_two_devices(padding):
    model, batch, pruner = tiny_model("llava_next"), make_batch("llava_next", padding), progressive()
    expected = answers(model, pruner, batch)
    with Machine():
        found = answers(spread(model, 3), pruner, batch)
    check_equal(found, expected)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3n"])
def test_families_over_two_devices(name):
    """Positions in three dimensions, features added between layers, keys lent to later layers."""
    check_family(name)


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_family_over_two_devices(name):
    if name in zoo.BROKEN:
        pytest.skip(zoo.BROKEN[name])
    check_family(name)


def check_family(name: str) -> None:
    model, batch = zoo.build(name, zoo.SUPPORTS[name][-1]), zoo.batch(name)
    pruner = prunekit.Pruner("random", schedule=prunekit.create("schedule", "progressive", layers=[1, 2]))
    with pruner(model), torch.no_grad():
        expected = model(**batch.inputs).logits
    with Machine():
        there = spread(model, 1)
        try:
            with torch.no_grad():
                there(**batch.inputs)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"the dense model does not run on simulated devices: {str(error).splitlines()[0][:80]}")
        with pruner(there), torch.no_grad():
            found = there(**batch.inputs).logits
    assert (found.to("cpu") - expected).abs().max() < 1e-4


def test_the_layers_really_are_on_two_devices_and_these_refuse_to_meet():
    with Machine():
        model = spread(tiny_model("llava"), 3)
        places = [str(next(layer.parameters()).device) for layer in make_family(model).layers]
        assert places == [FIRST] * 3 + [SECOND] * 3
        first, second = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        assert isinstance(first, Placed) and (first + first.to(FIRST)).tolist() == [2, 2]
        for mixed in (lambda: first + second, lambda: first + torch.ones(2), lambda: first[second.long()]):
            with pytest.raises(RuntimeError, match="on"):
                mixed()

        class StaysBehind(prunekit.Scorer):
            def score(self, view):
                return view.visual(view.hidden_states.norm(dim=-1)) + torch.ones(1, 1, device=FIRST)

        pruner = prunekit.Pruner(StaysBehind(), schedule=prunekit.create("schedule", "one_shot", layer=5))
        with pytest.raises(ValueError, match="operands on xla:0, xla:1"), torch.no_grad(), pruner(model):
            model(**make_batch("llava").inputs)


@pytest.mark.parametrize("name", ["multi", "tome", "renumber", "visionzip"])
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights(name, where, tmp_path):
    """Weights that come to the device for a layer's forward pass and go again: they are ``meta`` in between."""
    model, batch, pruner = tiny_model("llava"), make_batch("llava", "left"), PRUNERS[name]()
    expected = answers(model, pruner, batch)
    if where == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    assert all(parameter.device.type == "meta" for parameter in make_family(model).layers[3].parameters())
    check_equal(answers(model, pruner, batch), expected)
    assert all(parameter.device.type == "meta" for parameter in make_family(model).layers[3].parameters())
