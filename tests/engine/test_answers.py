"""Components that answer wrongly are named with their layer, and leave the model as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import prunekit
from zoo.tiny import make_batch, tiny_model


def scorer(answer):
    @dataclass
    class Wrong(prunekit.Scorer):
        sites = ("vision", "input", "decoder")

        def score(self, view):
            return answer(view)

    return {"scorer": Wrong()}


def selector(answer, **flags):
    @dataclass
    class Wrong(prunekit.Selector):
        def select(self, view, scores, quota):
            return answer(view, quota)

    for name, value in flags.items():
        setattr(Wrong, name, value)
    return {"selector": Wrong()}


def reducer(answer, added: int = 0):
    @dataclass
    class Wrong(prunekit.Reducer):
        def split(self, view, standing, keep):
            return keep - added, added

        def reduce(self, *, tokens, kept, alive, **rest):
            return answer(tokens, kept, alive)

    return {"reducer": Wrong()}


def fusion(answer):
    @dataclass
    class Wrong(prunekit.Fusion):
        def layers(self, cut, previous):
            return [cut - 1]

        def fuse(self, evidence, layers):
            return answer(evidence)

    return {"fusion": Wrong()}


def first(view, quota):
    """As many tokens as were asked for, from the front."""
    return view.alive & (view.alive.cumsum(1) <= quota[:, None])


WRONG = {
    "scorer raises": (
        scorer(lambda view: view.alive.float()[5000]),
        r"Wrong\.score failed at layer [12]: IndexError: .*test_answers\.py, line",
    ),
    "scorer shape": (
        scorer(lambda view: view.hidden_states[..., 0]),
        r"Wrong\.score returned \(3, 28\) at layer [12], not \(3, 16\)",
    ),
    "scorer type": (scorer(lambda view: 1.0), r"Wrong\.score returned float at layer [12]"),
    "scorer dtype": (scorer(lambda view: view.alive * 1j), r"Wrong\.score returned torch\.complex64 at layer"),
    "scorer device": (
        scorer(lambda view: torch.zeros(3, 16, device="meta")),
        r"Wrong\.score returned a tensor on 'meta' at layer",
    ),
    "scorer NaN": (
        scorer(lambda view: view.alive / 0 * 0),
        r"NaN scores at the cut before layer 2, samples \[0, 1, 2\]",
    ),
    "fusion shape": (fusion(lambda evidence: evidence), r"Wrong\.fuse returned \(1, 3, 16\) at layer 2"),
    "fusion raises": (fusion(lambda evidence: evidence[7]), r"Wrong\.fuse failed at layer 2: IndexError"),
    "selector dtype": (
        selector(lambda view, quota: first(view, quota).long()),
        r"Wrong\.select returned torch\.int64 at layer 2, not bool",
    ),
    "selector shape": (
        selector(lambda view, quota: first(view, quota)[:, :3]),
        r"Wrong\.select returned \(3, 3\) at layer 2",
    ),
    "selector raises": (
        selector(lambda view, quota: quota.nothing),
        r"Wrong\.select failed at layer 2: AttributeError",
    ),
    "selector gone": (
        selector(lambda view, quota: first(view, quota) if view.layer == 1 else ~view.alive),
        r"Wrong\.select kept tokens that are gone at layer 2, samples",
    ),
    "selector count": (
        selector(lambda view, quota: first(view, quota + 1), exact=True),
        r"Wrong\.select kept another number of tokens than it was asked for at layer 2, samples",
    ),
    "reducer type": (
        reducer(lambda tokens, kept, alive: tokens),
        r"Wrong\.reduce returned Tensor at layer 2, not a prunekit\.Reduced",
    ),
    "reducer shape": (
        reducer(lambda tokens, kept, alive: prunekit.Reduced(tokens[..., :3])),
        r"Wrong\.reduce\(…\)\.tokens returned \(3, 16, 3\) at layer 2",
    ),
    "reducer sources": (
        reducer(lambda tokens, kept, alive: prunekit.Reduced(tokens, sources=kept.float())),
        r"Wrong\.reduce\(…\)\.sources returned torch\.float32 at layer 2, not long",
    ),
    "reducer added": (
        reducer(lambda tokens, kept, alive: prunekit.Reduced(tokens, added=kept), added=1),
        r"Wrong\.reduce added other tokens than it was asked for at layer 2, samples \[0, 1, 2\]",
    ),
    "reducer added none": (
        reducer(lambda tokens, kept, alive: prunekit.Reduced(tokens), added=1),
        r"Wrong\.reduce added other tokens than it was asked for at layer 2",
    ),
    "reducer raises": (
        reducer(lambda tokens, kept, alive: tokens @ tokens),
        r"Wrong\.reduce failed at layer 2: RuntimeError",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_whoever_errs_is_named(case):
    parts, message = WRONG[case]
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    layers = [1, 2] if "gone" in case else [2]
    schedule = prunekit.create("schedule", "progressive", layers=layers)
    pruner = prunekit.Pruner(**{"scorer": "random", "fusion": "single", "schedule": schedule, **parts}, keep_ratio=0.5)
    with torch.no_grad():
        dense = model(**batch.inputs).logits
        with pruner(model), pytest.raises(prunekit.PrunekitError, match=message):
            model(**batch.inputs)
        assert torch.equal(model(**batch.inputs).logits, dense)


def test_a_block_of_the_encoder_is_named_too():
    model, batch = tiny_model("llava"), make_batch("llava")
    parts = {**scorer(lambda view: view.alive[:, :2].float()), "fusion": "single", "schedule": "encoder"}
    pruner = prunekit.Pruner(**parts, keep_ratio=0.5, positions="renumber")
    with (
        torch.no_grad(),
        pruner(model),
        pytest.raises(prunekit.PrunekitError, match=r"Wrong\.score returned .* at block \d+ of the encoder"),
    ):
        model(**batch.inputs)
    nans = prunekit.Pruner(**{**parts, **scorer(lambda view: view.alive / 0 * 0)}, positions="renumber")
    with (
        torch.no_grad(),
        nans(model),
        pytest.raises(prunekit.PrunekitError, match="NaN scores at the cut before block"),
    ):
        model(**batch.inputs)


def test_a_count_that_adapts_is_refused_inside_an_encoder():
    """Every image keeps one number there, so a count by rank would be ignored."""
    selector = prunekit.create("selector", "rank", variant="paper")
    pruner = prunekit.Pruner("visual", "single", "encoder", selector, positions="renumber")
    with pytest.raises(prunekit.PrunekitError, match="selector 'rank' keeps another number for each image"):
        pruner.apply(tiny_model("llava"))


@pytest.mark.parametrize(
    ("sites", "cuts", "message"),
    [
        (("decoder",), (prunekit.Cut(0, 0.5, "input"),), "says that it cuts at .'decoder',., but returns"),
        (("input", "decoder"), (prunekit.Cut(2, 0.5),), "says that it cuts at .'input', 'decoder'., but returns"),
        (("middle",), (prunekit.Cut(2, 0.5),), "cuts at .'middle'., which is none of vision, input, decoder"),
    ],
)
def test_a_schedule_cuts_where_it_says(sites, cuts, message):
    @dataclass
    class Mine(prunekit.Schedule):
        def cuts(self, depth, keep_ratio):
            return cuts

    Mine.sites = sites
    with pytest.raises(prunekit.PrunekitError, match=message):
        prunekit.Pruner("random", "single", Mine()).apply(tiny_model("llava"))
