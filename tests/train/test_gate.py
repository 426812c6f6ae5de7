"""The gate: it hides what removal removes, and its gradient is that of its formula."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import prunekit
from prunekit.engine import gating
from prunekit.engine.gating import GateCutter
from prunekit.engine.session import Session
from prunekit.families import family_of
from prunekit.train.gate import SigmoidGate
from tools.embedded.forward import rms_norm
from zoo.tiny import make_batch, tiny_model

KEEP = 0.3


def learned(depth: int = 6, dtype=torch.float32):
    fusion = prunekit.create("fusion", "learned")
    weights = fusion.parameter(depth)
    g = torch.Generator().manual_seed(5)
    weights.data = torch.rand(depth, generator=g).to(dtype) + 0.2
    return fusion, weights


def gate_session(pruner, model, gate):
    family = family_of(model)
    plan = pruner.plan(family)
    return Session(plan, family, cutter=GateCutter(plan, gate))


def gated(model, batch, pruner, gate):
    session = gate_session(pruner, model, gate)
    session.install()
    try:
        logits = model(**batch.inputs, use_cache=False).logits
        return logits, session.trace
    finally:
        session.remove()


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
@pytest.mark.parametrize("scorer", ["instruction", "visual"])
def test_a_closed_gate_is_removal(family, attn, scorer):
    """Two cuts, left padding: the same choice, scores and logits as the pruned model."""
    model, batch = tiny_model(family, attn), make_batch(family, "left")
    pruner = prunekit.Pruner(scorer, "multi", "progressive", keep_ratio=KEEP)
    text = batch.mask & ~batch.visual
    with torch.no_grad():
        dense = model(**batch.inputs).logits
        with pruner(model) as trace:
            pruned, cuts = model(**batch.inputs).logits, trace.cuts
        tokens = trace.tokens_per_layer
        logits, trace = gated(model, batch, pruner, SigmoidGate())
    assert (pruned - dense)[text].abs().max() > 1e-3
    assert (logits - pruned)[text].abs().max() < 1e-4
    assert torch.equal(tokens, trace.tokens_per_layer)
    for ours, theirs in zip(trace.cuts, cuts, strict=True):
        assert torch.equal(ours.kept, theirs.kept)
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-5, equal_nan=True)


def test_nothing_of_the_gate_is_left_behind():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with torch.no_grad():
        before = model(**batch.inputs).logits
        gated(model, batch, prunekit.Pruner(keep_ratio=KEEP), SigmoidGate())
        assert torch.equal(model(**batch.inputs).logits, before)


def test_the_gates_value_by_a_loop():
    g = torch.Generator().manual_seed(1)
    scores, alive = torch.rand(4, 9, generator=g), torch.ones(4, 9, dtype=torch.bool)
    alive[1, 6:], alive[2, 3] = False, False
    kept = torch.zeros_like(alive)
    for row, count in enumerate((3, 2, 5, 9)):
        standing = [i for i in range(9) if alive[row, i]]
        for i in sorted(standing, key=lambda i: -float(scores[row, i]))[:count]:
            kept[row, i] = True
    made = SigmoidGate("soft", 0.7)(scores.masked_fill(~alive, torch.nan), kept, alive)
    for row in range(4):
        s = [float(scores[row, i]) for i in range(9) if alive[row, i]]
        mean = sum(s) / len(s)
        sd = math.sqrt(sum((x - mean) ** 2 for x in s) / len(s))
        stays = [float(scores[row, i]) for i in range(9) if kept[row, i]]
        goes = [x for x in s if x not in stays]
        for i in range(9):
            if not goes:
                assert made[row, i] == 1
            elif alive[row, i]:
                z = (float(scores[row, i]) - (min(stays) + max(goes)) / 2) / (0.7 * sd)
                assert float(made[row, i]) == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-5)
    hard = SigmoidGate()(scores.masked_fill(~alive, torch.nan), kept, alive)
    assert torch.equal(hard[alive], kept[alive].float())


def objective(model, batch, pruner, gate, weights=None):
    """A loss on the text behind the image, in double precision."""
    logits, _ = gated(model, batch, pruner, gate)
    return logits[batch.mask & ~batch.visual].log_softmax(-1)[:, 3].mean()


@pytest.fixture
def doubles(monkeypatch):
    """Everything in double precision, the scores (float32 in the engine) included."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(gating, "FLOOR", 1e-3)  # finite steps of the gate must not leave the logarithm's domain
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda norm, x: rms_norm(norm, x))
    model, batch = tiny_model("llava").double(), make_batch("llava", "left")
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].to(torch.float64)
    return model, batch


def differences(function, weights, step=1e-6):
    found = torch.zeros_like(weights)
    for index in range(len(weights)):
        ends = []
        for sign in (1, -1):
            moved = weights.detach().clone()
            moved[index] += sign * step
            ends.append(function(moved))
        found[index] = (ends[0] - ends[1]) / (2 * step)
    return found


@pytest.mark.parametrize("schedule", ["one_shot", "progressive"])
def test_the_soft_gates_gradient_is_that_of_finite_differences(doubles, schedule):
    model, batch = doubles
    fusion, weights = learned(dtype=torch.float64)
    layers = dict(depth=0.5) if schedule == "one_shot" else dict(layers=[2, 4])
    pruner = prunekit.Pruner("instruction", fusion, prunekit.create("schedule", schedule, **layers), keep_ratio=KEEP)
    gate = SigmoidGate("soft", 0.5)
    (gradient,) = torch.autograd.grad(objective(model, batch, pruner, gate), weights)

    def value(moved):
        weights.data = moved
        with torch.no_grad():
            return objective(model, batch, pruner, gate)

    expected = differences(value, weights.detach().clone())
    used = pruner.schedule.cuts(6, KEEP)[-1].layer
    assert gradient[:used].abs().min() > 1e-7 and not gradient[used:].any()
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-9)


def test_the_straight_through_gradient_is_that_of_its_soft_part(doubles):
    """m + p(w) - p(w0) is what the formula differentiates: finite differences of the loss of just that gate."""
    model, batch = doubles
    fusion, weights = learned(dtype=torch.float64)
    one_shot = prunekit.create("schedule", "one_shot", layer=3)
    pruner = prunekit.Pruner("instruction", fusion, one_shot, keep_ratio=KEEP)
    (gradient,) = torch.autograd.grad(objective(model, batch, pruner, SigmoidGate("straight_through", 0.5)), weights)
    soft, start = SigmoidGate("soft", 0.5), []

    def surrogate(scores, kept, alive):
        p = soft(scores, kept, alive)
        if not start:
            start.append((kept.double(), p.detach()))
        return start[0][0] + p - start[0][1]

    with torch.no_grad():
        objective(model, batch, pruner, surrogate)

    def value(moved):
        weights.data = moved
        with torch.no_grad():
            return objective(model, batch, pruner, surrogate)

    expected = differences(value, weights.detach().clone())
    assert gradient[:3].abs().min() > 1e-7
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-9)


def test_slopes_of_the_gates_are_clipped_in_nats_of_a_sample():
    """What a scaled loss hands back to a gate is held to the clip times that scale; without a clip it is not."""
    g = torch.Generator().manual_seed(2)
    start, alive = torch.rand(2, 8, generator=g), torch.ones(2, 8, dtype=torch.bool)
    kept = start >= start.sort(1, descending=True).values[:, 2:3]
    slopes = torch.randn(2, 8, generator=g) * 10
    found = {}
    for clip in (None, 0.5):
        scores = start.clone().requires_grad_()
        gate = SigmoidGate(clip=clip, scale=0.25)
        (gate(scores, kept, alive) * slopes * 0.25).sum().backward()
        found[clip] = scores.grad
    for clip, held in ((None, slopes * 0.25), (0.5, (slopes * 0.25).clamp(-0.125, 0.125))):
        scores = start.clone().requires_grad_()
        (torch.sigmoid(SigmoidGate().logits(scores, kept, alive)) * held).sum().backward()
        assert torch.allclose(found[clip], scores.grad, atol=1e-6)
    assert not torch.allclose(found[None], found[0.5])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("scorer", ["instruction", "visual"])
def test_checkpointing_gives_the_same_gradients(family, scorer):
    batch = make_batch(family, "left")
    found = []
    for checkpointing in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        fusion, weights = learned()
        pruner = prunekit.Pruner(scorer, fusion, "progressive", keep_ratio=KEEP)
        session = gate_session(pruner, model, SigmoidGate())
        session.install()
        logits = model(**batch.inputs, use_cache=False).logits
        loss = logits[batch.mask & ~batch.visual].square().mean() + session.trace.cuts[-1].scores.nansum()
        loss.backward()
        session.remove()
        found.append({"w": weights.grad, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    plain, again = found
    assert plain.keys() == again.keys() and plain["w"].abs().max() > 0
    for name, gradient in plain.items():
        assert (again[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_answers_are_no_instruction():
    """What follows the prompt changes neither scores nor choice, for every set of rows."""
    model, batch = tiny_model("llava"), make_batch("llava")
    longer = torch.cat([batch.ids, torch.randint(2, 80, (3, 4), generator=torch.Generator().manual_seed(3))], 1)
    inputs = {**batch.inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    for rows in ("text", "last", "all"):
        scorer = prunekit.create("scorer", "instruction", rows=rows)
        pruner = prunekit.Pruner(scorer, "multi", "progressive", keep_ratio=KEEP)
        session = gate_session(pruner, model, SigmoidGate())
        session.install()
        with torch.no_grad():
            model(**batch.inputs, use_cache=False)
            alone = session.trace.cuts
            session.prompt = torch.arange(longer.shape[1]).expand(3, -1) < batch.ids.shape[1]
            model(**inputs, use_cache=False)
            session.remove()
        for ours, theirs in zip(session.trace.cuts, alone, strict=True):
            assert torch.equal(ours.kept, theirs.kept)
            assert torch.allclose(ours.scores, theirs.scores, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(reducer="merge"), "merge"),
        (dict(positions="renumber"), "renumber"),
        (dict(scorer="visual", schedule="encoder"), "encoder"),
    ],
)
def test_what_a_gate_cannot_stand_for_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        gate_session(prunekit.Pruner(keep_ratio=0.5, **options), tiny_model("llava"), SigmoidGate())


def test_a_cache_is_refused():
    model, batch = tiny_model("llava"), make_batch("llava")
    session = gate_session(prunekit.Pruner(), model, SigmoidGate())
    session.install()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(**batch.inputs)
    session.remove()
