"""LLaVA around every causal language model of transformers: removal ≡ masking, or one clear refusal.

The default run takes one case for each model type (attention and padding turn with its place in the list), of one in
three; ``pytest -m full`` runs every type with each attention and padding. ``python tests/support/backbones.py`` prints
the table.
"""

from __future__ import annotations

import math

import pytest

import backbones
import prunekit
from zoo.base import OLD

KINDS = (  # each breaks an engine that knows its models by names
    "beam",  # per-token scales behind an axis of heads
    "falcon_h1",  # a second padding mask
    "gemma3n_text",  # another axis of tokens, brought along by the text model
    "gpt_neox",  # the cache by another name
    "llama4_text",  # queries scaled by their place
    "longcat_flash",  # two cache layers a decoder layer
    "moshi",  # a sliding cache without a sliding mask
    "xglm",  # a mask of an encoder that is not there
    "zamba2",  # the mask over keys by another name, and that of padding by its usual one
    "zaya",  # masks in a dict, and what a layer hands on to the next
)
REFUSED = {
    "codegen": "no decoder layers found",
    "dbrx": "no decoder layers found",
    "dory": "run several times in a forward pass",
    "git": "no decoder layers found",
    "gptj": "no decoder layers found",
    "hrm_text": "no decoder layers found",
    "recurrent_gemma": "mixes neighbours and looks at no padding mask",  # in batches of unequal rows
}
LEAST = 50 if OLD else 100  # model types that must be comparable


def one_case(name: str) -> tuple[str, str]:
    """An attention implementation and a padding, which turn with the place of a model type in the list."""
    place, attentions = backbones.NAMES.index(name), backbones.supports(name)
    return attentions[place % len(attentions)], backbones.PADDINGS[place % 3]


def check(name: str, attn: str, padding: str) -> None:
    try:
        figures = backbones.difference(name, attn, padding)
    except prunekit.PrunekitError as error:
        assert name in REFUSED and REFUSED[name] in str(error), f"{name} is refused: {error}"
        assert "\n" not in str(error)
        return
    assert name not in REFUSED or name == "recurrent_gemma", f"{name} is no longer refused: {figures}"
    assert not math.isnan(figures["moved"]) and figures["moved"] > 1e-3, "hiding changes nothing: this proves nothing"
    assert figures["prompt"] < backbones.TOLERANCE and figures.get("decode", 0.0) < backbones.TOLERANCE, figures


def runnable(name: str) -> None:
    if reason := backbones.cannot_run(name):
        pytest.skip(f"transformers itself: {reason[:120]}")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("padding", ["left", "none"])
def test_removal_equals_masking_around_each_odd_kind(name, padding):
    runnable(name)
    check(name, backbones.supports(name)[0], padding)


@pytest.mark.parametrize("name", backbones.NAMES[::3])
def test_removal_equals_masking(name):
    runnable(name)
    check(name, *one_case(name))


@pytest.mark.full
@pytest.mark.parametrize("padding", backbones.PADDINGS)
@pytest.mark.parametrize("name", backbones.NAMES)
def test_removal_equals_masking_everywhere(name, padding):
    runnable(name)
    for attn in backbones.supports(name):
        check(name, attn, padding)


@pytest.mark.full
def test_enough_backbones_can_be_compared():
    """So that the tests above cannot pass empty. What transformers cannot run is printed with its reason."""
    reasons = {name: reason for name in backbones.NAMES if (reason := backbones.cannot_run(name))}
    for name, reason in reasons.items():
        print(f"{name:26s} {reason[:160]}")
    compared = [name for name in backbones.NAMES if name not in reasons and name not in REFUSED]
    decoded = [name for name in compared if not backbones.cannot_generate(name)]
    print(f"{len(compared)} compared, {len(decoded)} of them in generate, {len(reasons)} not in LLaVA")
    assert len(compared) >= LEAST and len(decoded) >= LEAST


def test_the_slice_of_the_default_run_is_not_empty():
    comparable = [n for n in backbones.NAMES[::3] if n not in REFUSED and not backbones.cannot_run(n)]
    assert len(comparable) >= LEAST // 4


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_backbone_that_cannot_be_exact_is_refused_in_one_line(name):
    runnable(name)
    with pytest.raises(prunekit.PrunekitError, match=REFUSED[name]) as caught:
        backbones.difference(name, backbones.supports(name)[0], "left")
    assert "\n" not in str(caught.value)
