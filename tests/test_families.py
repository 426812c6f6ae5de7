"""Every family: removal ≡ masking on tiny random models, against the dense model's own masks.

The default run takes one slice of the product for each family (which slice turns with the family's place in the list);
``pytest -m full`` runs it all.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import prunekit
import zoo
from masking import generate, has_recurrent_layers, hidden_positions, prompt_logits, real_tokens, step_logits
from prunekit.families import EXACT, make_family

TOLERANCE, NEW = 1e-4, 3
PADDINGS = ("none", "left", "right")
PRODUCT = [
    (name, attn, padding, schedule)
    for name in EXACT
    for attn in [a for a in ("eager", "sdpa") if a in zoo.SUPPORTS[name]]
    for padding, schedule in itertools.product(PADDINGS, ("one_shot", "progressive"))
]
SLICE = [
    (name, attns[place % len(attns)], padding, ("one_shot", "progressive")[(place // 2) % 2])
    for place, name in enumerate(EXACT)
    for attns in [[a for a in ("sdpa", "eager") if a in zoo.SUPPORTS[name]]]
    for padding in ("left", PADDINGS[place % 2 * 2])
]


def difference(name: str, attn: str, padding: str, schedule: str, variant: str = "plain") -> dict[str, float]:
    """Largest differences of logits: prompt, decode steps; and how far hiding the tokens moves the prompt's."""
    model, batch = zoo.build(name, attn), zoo.batch(name, padding, variant=variant)
    layers = [1] if schedule == "one_shot" else [1, 2]
    cuts = prunekit.create("schedule", "progressive", layers=layers)
    with torch.no_grad(), prunekit.Pruner("random", "single", cuts, keep_ratio=0.4)(model) as trace:
        prompt = model(**batch.inputs).logits
        hidden = hidden_positions(batch, trace.cuts)
        steps = generate(model, batch.inputs, NEW)
    reference = zoo.build(name, "eager") if "eager" in zoo.SUPPORTS[name] else model
    text = real_tokens(batch) & ~batch.visual
    expected = prompt_logits(reference, batch, hidden)
    found = {
        "prompt": float((prompt - expected)[text].abs().max()),
        "moved": float((prompt_logits(reference, batch, {}) - expected)[text].abs().max()),
    }
    if padding == "none" or not has_recurrent_layers(make_family(model)):
        found["decode"] = float((steps - step_logits(reference, batch, hidden, NEW)).abs().max())
    return found


def check(*case: str) -> None:
    found = difference(*case)
    assert found["moved"] > 1e-3, "hiding changes nothing: the comparison proves nothing"
    assert found["prompt"] < TOLERANCE and found.get("decode", 0.0) < TOLERANCE, found


@pytest.mark.parametrize("case", SLICE, ids="-".join)
def test_removal_equals_masking(case):
    check(*case)


@pytest.mark.full
@pytest.mark.parametrize("case", PRODUCT, ids="-".join)
def test_removal_equals_masking_everywhere(case):
    check(*case)


VARIANTS = [(name, v) for name in EXACT for v in zoo.variants(name) if v != "plain"]


@pytest.mark.full
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_several_images_none_and_video(name, variant):
    check(name, zoo.SUPPORTS[name][-1], "left", "progressive", variant)
