"""Removal against masking for one family of the zoo: what is varied, and the largest difference."""

from __future__ import annotations

from collections.abc import Callable

import torch

import prunekit
import zoo
from prunekit.families import EXACT, make_family
from reference import generate, has_recurrent_layers, hidden_keys, prompt_logits, step_logits

TOLERANCE, NEW = 1e-4, 3


PADDINGS = ("left", "none", "right")


SCHEDULES = ("progressive", "one_shot")


NAMES = [name for name in zoo.NAMES if zoo.FAMILY[name] in EXACT]


def attentions(name: str) -> list[str]:
    return [a for a in ("sdpa", "eager") if a in zoo.SUPPORTS[name]]


def difference(
    name: str,
    attn: str,
    padding: str,
    schedule: str,
    variant: str = "plain",
    layers: tuple[int, ...] = (),
    build: Callable[[str, str], torch.nn.Module] = zoo.build,
) -> dict[str, float]:
    """Largest differences of logits: prompt, decode steps; and how far hiding the tokens moves the prompt's."""
    model, batch = build(name, attn), zoo.batch(name, padding, variant=variant)
    layers = layers or ((1,) if schedule == "one_shot" else (1, 2))
    cuts, share = prunekit.create("schedule", "progressive", layers=list(layers)), 0.4
    if schedule == "withdraw":
        cuts, share = prunekit.create("schedule", "withdraw", layer=2), 0
    with torch.no_grad(), prunekit.Pruner("random", "single", cuts, keep_ratio=share)(model) as trace:
        prompt = model(**batch.inputs).logits
        hidden = hidden_keys(batch, trace.cuts)
        steps = generate(model, batch.inputs, NEW)
    reference = build(name, "eager") if attn == "sdpa" and "eager" in zoo.SUPPORTS[name] else model
    text = batch.mask & ~batch.visual
    expected = prompt_logits(reference, batch, hidden)
    with torch.no_grad():
        dense = reference(**batch.inputs).logits
    differences = {
        "prompt": float((prompt - expected)[text].abs().max()),
        "moved": float((dense - expected)[text].abs().max()),
    }
    if padding != "right" or not has_recurrent_layers(make_family(model)):
        differences["decode"] = float((steps - step_logits(reference, batch, hidden, NEW)).abs().max())
    return differences
