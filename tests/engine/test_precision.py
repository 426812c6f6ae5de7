"""Mixed precision: under torch.autocast the model's arithmetic is rounded, prunekit's own never is."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import pytest
import torch

import prunekit
from prunekit.components.scorers import InstructionScorer
from zoo.tiny import make_batch, tiny_model

DTYPES = (torch.bfloat16, torch.float16)


def needs_frames(name: str) -> bool:
    """Whether the method refuses images: these are run on clips, in test_video_methods.py."""
    return any(getattr(part, "least_frames", 1) > 1 for part in vars(prunekit.method(name)).values())


# ivtp_mini has weights for mini alone.
METHODS = sorted(name for name in prunekit.methods() if name != "ivtp_mini" and not needs_frames(name))
FAMILIES = ("llava", "qwen2_vl")
batches = functools.cache(make_batch)


def autocast(dtype):
    return torch.autocast("cpu", dtype)


def pruner_for(name: str, model) -> prunekit.Pruner:
    """The method; skips one that the model's family cannot have, whatever the precision."""
    pruner = prunekit.method(name)
    try:
        pruner.apply(model).remove()
    except ValueError as error:
        pytest.skip(str(error))
    return pruner


def block(pruner, model):
    if pruner.scorer.uses_regions:
        if model.config.model_type != "llava":
            pytest.skip("regions need a fixed grid")
        return pruner(model, regions=[[(0.0, 0.0, 0.5, 0.5)]] * 3)
    return pruner(model)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_works_under_autocast(name, family, attn):
    """Padded, both dtypes: forward, generation and backward are finite, and scores are float32."""
    model, batch = tiny_model(family, attn), batches(family, "left")
    pruner = pruner_for(name, model)
    for dtype in DTYPES:
        with autocast(dtype), block(pruner, model) as trace:
            logits = model(**batch.inputs, use_cache=False).logits
            assert logits[batch.mask].isfinite().all()
            assert all(cut.scores.dtype == torch.float32 for cut in trace.cuts) and trace.cuts
            model.zero_grad()
            logits[batch.mask & ~batch.visual].float().square().mean().backward()
            with torch.no_grad():
                model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        slopes = [p.grad for p in model.get_decoder().layers[-1].parameters()]
        assert all(slope.isfinite().all() and slope.abs().sum() > 0 for slope in slopes)


@dataclass
class Watched(InstructionScorer):
    """Remembers what it saw, and whether it ran under autocast."""

    seen: list = field(default_factory=list)

    def score(self, view):
        scores = super().score(view)
        self.seen.append((view, scores, torch.is_autocast_enabled("cpu")))
        return scores


def by_hand(view) -> torch.Tensor:
    """The instruction's mean attention to each visual token in float64, from the q and k that the view holds."""
    q, k = view.queries.double(), view.keys.double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    size = logits.shape[-1]
    seen = torch.ones(size, size, dtype=torch.bool).tril() & view.real[:, None, :]
    rows = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)
    scores = torch.zeros(view.alive.shape, dtype=torch.float64)
    for b in range(len(rows)):
        received = rows[b][view.text_mask[b]].mean(0)
        scores[b] = received[view.slots[b]]
    return scores


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_same_queries_and_keys_without_autocast(family, dtype, attn):
    model, batch, scorer = tiny_model(family, attn), batches(family, "left"), Watched()
    with torch.no_grad(), autocast(dtype), prunekit.Pruner(scorer, keep_ratio=0.3)(model):
        model(**batch.inputs)
    assert len(scorer.seen) > 1
    for view, scores, mixed in scorer.seen:
        assert not mixed and view.queries.dtype == view.keys.dtype == torch.float32
        again = InstructionScorer().score(view)
        assert torch.equal(again[view.alive], scores[view.alive])
        assert (scores - by_hand(view))[view.alive].abs().max() < 1e-6


@pytest.mark.parametrize("name", ["random", "fastervlm"])
def test_the_models_own_modules_stay_under_autocast(name):
    """What is pruned away apart, the model computes what it computes alone: with nothing to remove the same logits."""
    model, batch = tiny_model("llava"), batches("llava", "left")
    pruner = prunekit.method(name, keep_ratio=1.0)
    with torch.no_grad(), autocast(torch.bfloat16):
        dense = model(**batch.inputs).logits
        with pruner(model):
            assert torch.equal(model(**batch.inputs).logits, dense)
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_look_ahead_and_a_projection_run_under_the_callers_autocast():
    """Modules of the model that prunekit runs itself give what they give in the model's own forward pass."""
    model, batch, types = tiny_model("llava"), batches("llava", "left"), []
    note = lambda module, args, output: types.append(output.dtype)  # noqa: E731
    handles = [model.model.multi_modal_projector.linear_1.register_forward_hook(note)]
    handles += [layer.self_attn.q_proj.register_forward_hook(note) for layer in model.get_decoder().layers]
    for name in ("pyramiddrop", "visionzip"):
        with torch.no_grad(), autocast(torch.bfloat16), prunekit.method(name)(model):
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    assert set(types) == {torch.bfloat16} and len(types) > 2 * 6 + 2


@pytest.fixture
def mixed_trainer(monkeypatch):
    """The Trainer's arguments with ``bf16=True``, which prunekit sets on a GPU alone; accelerate keeps the precision of
    a process, so its state is as before when the test is over."""
    from accelerate.state import AcceleratorState

    from prunekit.train import trainer

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # put back afterwards, whatever the Trainer sets
    AcceleratorState._reset_state(True)
    make = trainer.loop_arguments
    monkeypatch.setattr(trainer, "loop_arguments", lambda *args, **more: make(*args, **{**more, "bf16": True}))
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("gate", ["none", "straight_through", "soft"])
@pytest.mark.parametrize("kind", ["full", "fusion"])
def test_training_under_the_trainers_mixed_precision(tmp_path, mixed_trainer, kind, gate, attn):
    """Float32 weights and the Trainer's ``bf16=True``, as on any GPU with dtype=float32."""
    from prunekit.train.batches import Collator, Examples
    from prunekit.train.kinds import with_learned_fusion
    from prunekit.train.model import TrainedModel
    from prunekit.train.trainer import PruneTrainer, arguments_for
    from training import examples, pruner, settings, tiny

    if (kind, gate) == ("fusion", "none"):
        pytest.skip("fusion weights learn through a gate")
    made, chosen = tiny(), settings(kind, gate=gate, max_steps=2, save_steps=10)
    made.model.set_attn_implementation(attn)
    arguments = arguments_for(chosen, tmp_path, torch.device("cpu"), 0)
    model = TrainedModel(made.model, with_learned_fusion(pruner(), kind), chosen)
    try:
        trainer = PruneTrainer(
            model, chosen, arguments, train_dataset=Examples(examples(8), "mini/train"), data_collator=Collator(made)
        )
        assert trainer.accelerator.mixed_precision == "bf16"
        trainer.train()
        assert model.trace.cuts and all(cut.scores.dtype == torch.float32 for cut in model.trace.cuts)
    finally:
        model.close()
    assert all(p.isfinite().all() for p in model.trained().values())
