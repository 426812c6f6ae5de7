"""Training: one update however a batch is cut, exact resumption, artifacts that come back, bad input in one line."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunekit
from prunekit.adapters import attach
from prunekit.families import family_of
from prunekit.train.batches import IGNORE, Collator
from prunekit.train.keep import KeepSchedule
from prunekit.train.model import TrainedModel
from prunekit.train.run import train
from prunekit.train.trainer import PruneTrainer, last_checkpoint
from training import SIZE, examples, pruner, settings, tiny


def run(folder, kind="fusion", made=None, resume=False, **options):
    made = made or tiny()
    trained = train(made, examples(), pruner(), settings(kind, **options), folder, resume=resume)
    return trained, journal(folder)


def journal(folder):
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_labels_are_the_answer_and_its_end_behind_the_prompt():
    made, shown = tiny(), examples(6)
    batch = Collator(made)(shown)
    tokenizer = made.processor.tokenizer
    for row, example in enumerate(shown):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        prompt = made.processor(
            images=example.images(), text=Collator(made).batcher.prompt(example), return_tensors="pt"
        ).input_ids[0]
        answer = [*tokenizer(example.answers[0], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        whole = [*prompt.tolist(), *answer]
        assert ids[-len(whole) :].tolist() == whole
        assert batch["attention_mask"][row].sum() == len(whole) == batch["attention_mask"][row, -len(whole) :].sum()
        assert labels[-len(answer) :].tolist() == answer and (labels[: -len(answer)] == IGNORE).all()


@pytest.mark.parametrize("kind", ["fusion", "lora", "projector", "full"])
def test_the_loss_is_that_of_the_pruned_model(kind):
    """L_LM against the hard pruner with the prompt's own choice, token by token; nothing removed in training."""
    made = tiny()
    batch = Collator(made)(examples(4))
    labels, ids = batch.pop("labels"), batch.pop("ids")
    assert len(ids) == 4
    used = pruner(fusion="learned") if kind == "fusion" else pruner()
    model = TrainedModel(made.model, used, settings(kind))
    with torch.no_grad():
        parts = model(labels=labels, **batch)
        kept = model.trace.cuts[-1].kept
        model.close()
        model.session.prompt, model.gate = labels == IGNORE, None
        hard = prunekit.engine.session.Session(used.plan(family_of(made.model)), family_of(made.model))
        hard.prompt = labels == IGNORE
        hard.install()
        logits = model.model(**batch, use_cache=False).logits
        hard.remove()
    assert torch.equal(hard.trace.cuts[-1].kept, kept)
    total = 0.0
    for row in range(4):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != IGNORE:
                total -= float(logits[row, place - 1].log_softmax(-1)[labels[row, place]])
    assert float(parts["lm"]) == pytest.approx(total, rel=1e-4)
    assert int(parts["tokens"]) == int((labels != IGNORE).sum())


WRITTEN = {
    "fusion": "fusion.safetensors",
    "lora": "adapter/adapter_model.safetensors",
    "projector": "trained.safetensors",
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_accumulation_and_checkpointing_give_the_update_of_one_big_batch(tmp_path, kind):
    found = []
    for name, options in {
        "one": dict(batch_size=8),
        "parts": dict(batch_size=2, accumulate=4),
        "again": dict(batch_size=8, checkpointing=True),
    }.items():
        made = tiny()
        run(tmp_path / name, kind, made, max_steps=2, sparsity=0.3, penalty="hoyer", warmup=0.0, **options)
        place = tmp_path / name / WRITTEN[kind]
        found.append((load_file(place), journal(tmp_path / name)))
    (one, log), *others = found
    start = 1 / SIZE.layers
    assert kind != "fusion" or (one["weights"] - start).abs().max() > 1e-3
    for other, again in others:
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.allclose(value, other[key], atol=2e-5), key
        for a, b in zip(log, again, strict=True):
            assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-4)
            assert a["sparsity"] == pytest.approx(b["sparsity"], rel=1e-4)
            assert a["loss"] == pytest.approx(a["lm_loss"] + 0.3 * a["sparsity"], rel=1e-5)


@pytest.mark.parametrize("kind", ["fusion", "lora"])
def test_a_resumed_run_has_the_losses_of_one_without_interruption(tmp_path, kind, monkeypatch):
    options = dict(max_steps=6, keep_random=[0.1, 0.25, 0.5], sparsity=0.1, lora_dropout=0.1)
    _, whole = run(tmp_path / "whole", kind, **options)
    compute, calls = PruneTrainer.compute_loss, []

    def stops(self, *args, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PruneTrainer, "compute_loss", stops)
        run(tmp_path / "cut", kind, **options)
    assert last_checkpoint(tmp_path / "cut" / "checkpoints").name == "checkpoint-4"
    _, cut = run(tmp_path / "cut", kind, resume=True, **options)
    assert [row["step"] for row in cut] == [row["step"] for row in whole] == list(range(1, 7))
    for a, b in zip(whole, cut, strict=True):
        assert a["loss"] == b["loss"] and a["sparsity"] == b["sparsity"] and a["keep_ratio"] == b["keep_ratio"]
    assert len({row["keep_ratio"] for row in whole}) > 1


def test_where_lora_starts_is_the_seeds(tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        made = tiny()
        torch.manual_seed(number)  # whatever has been drawn before
        found.append(TrainedModel(made.model, pruner(), settings("lora"), seed).trained())
    first, same, other = (torch.cat([p.flatten() for p in parts.values()]) for parts in found)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_only_the_fusion_trains_and_comes_back(tmp_path):
    made = tiny()
    before = {name: p.clone() for name, p in made.model.state_dict().items()}
    trained, log = run(tmp_path / "run", "fusion", made)
    assert all(torch.equal(p, before[name]) for name, p in made.model.state_dict().items())
    weights = load_file(tmp_path / "run" / "fusion.safetensors")["weights"]
    used = 2  # cuts before layers 1 and 2 of 4
    assert weights.shape == (4,) and (weights[:used] - 0.25).abs().min() > 0
    assert torch.equal(weights[used:], torch.full((2,), 0.25))
    again = prunekit.Pruner.load(tmp_path / "run")
    assert again.fusion.registered_name == "learned" and again.keep_ratio == 0.25
    batch = Collator(made)(examples(4))
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "ids")}
    with torch.no_grad(), again(trained.model) as trace:
        trained.model(**inputs)
    expected = torch.einsum("l,lbn->bn", weights[:1], _evidence(made, inputs))
    assert torch.allclose(trace.cuts[0].scores, expected, atol=1e-6)
    assert len(log) == 4 and not any(p.requires_grad for p in trained.model.parameters())


def _evidence(made, inputs):
    """Layer 0's instruction attention by eager weights, head and row means by hand: [1, B, N]."""
    made.model.set_attn_implementation("eager")
    out = made.model(**inputs, output_attentions=True, use_cache=False).attentions[0].mean(1)
    made.model.set_attn_implementation("sdpa")
    image = inputs["input_ids"] == made.model.config.image_token_id
    rows = []
    for b in range(len(out)):
        places = image[b].nonzero()[:, 0]
        text = [s for s in range(int(places[-1]) + 1, out.shape[1]) if inputs["attention_mask"][b, s]]
        rows.append(out[b][text][:, places].mean(0))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("kind", ["lora", "projector", "full"])
def test_trained_weights_come_back_onto_a_fresh_model(tmp_path, kind):
    trained, _ = run(tmp_path / "run", kind, learning_rate=1e-2)
    fresh = attach(tiny().model, tmp_path / "run").eval()
    batch = Collator(trained)(examples(4))
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "ids")}
    with torch.no_grad():
        ours, theirs, dense = trained.model(**inputs).logits, fresh(**inputs).logits, tiny().model(**inputs).logits
    assert (ours - dense).abs().max() > 1e-3
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not any("lora" in name for name, _ in trained.model.named_modules())
    assert trained.digest != "tiny-0"


@pytest.mark.parametrize("reducer", ["perceiver", "qformer"])
def test_compressors_are_trained(tmp_path, reducer):
    made = prunekit.create("reducer", reducer, queries=9, heads=2, layers=2)
    used = prunekit.Pruner("random", "single", "input", "stride", made, keep_ratio=0.25)
    start = {name: p.clone() for name, p in made.module(SIZE.width).state_dict().items()}
    options = settings("compressor", learning_rate=3e-3, max_steps=8)
    train(tiny(), examples(4), used, options, tmp_path)  # one batch: every step's loss is of the same answers
    log = journal(tmp_path)
    assert log[-1]["lm_loss"] < log[0]["lm_loss"]
    saved = load_file(tmp_path / "reducer.safetensors")
    assert all((saved[name] - p).abs().max() > 0 for name, p in start.items() if "norm" not in name and p.ndim > 1)
    again = prunekit.Pruner.load(tmp_path).reducer
    assert all(torch.equal(p, saved[name]) for name, p in again.module(SIZE.width).state_dict().items())


def test_the_keep_ratio_falls_along_a_cosine():
    keep = KeepSchedule(0.25, warmup=0.5)
    for step in range(20):
        expected = 0.25 if step >= 10 else 0.25 + 0.75 * (1 + math.cos(math.pi * step / 10)) / 2
        assert keep.ratio(step, 20) == pytest.approx(expected)
    drawn = [KeepSchedule(0.25, among=[0.1, 0.5], seed=1).ratio(step, 200) for step in range(200)]
    assert 60 < drawn.count(0.1) < 140 and set(drawn) == {0.1, 0.5}


def test_a_warm_up_is_what_training_does(tmp_path):
    _, log = run(tmp_path, keep_warmup=0.5)
    assert [round(row["keep_ratio"], 3) for row in log] == [1.0, 0.625, 0.25, 0.25]


def test_the_temperature_is_annealed():
    options = settings(gate="soft", temperature=1.0, temperature_end=0.01)
    assert [options.temperature_at(step, 3) for step in range(3)] == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(sparsity=-1.0), "train.sparsity must be a number from 0 on, not -1.0"),
        (dict(sparsity=float("nan")), "train.sparsity"),
        (dict(penalty="l2"), "Unknown train.penalty 'l2'"),
        (dict(gate="hard"), "Unknown train.gate 'hard'"),
        (dict(max_steps=0), "train.max_steps"),
        (dict(kind="tower"), "Unknown train.kind 'tower'"),
        (dict(temperature=0.0), "train.temperature must be a number above 0, not 0.0"),
        (dict(keep_random=0.5), "train.keep_random must be a list, not 0.5"),
        (dict(limit=0), "train.limit must be a whole number from 1 on or null, not 0"),
        (dict(evaluate="maybe"), "train.evaluate must be true or false, not 'maybe'"),
        (dict(lora_alpha="x"), "train.lora_alpha must be a number from 0 on, not 'x'"),
        (dict(keep_warmup=None), "train.keep_warmup must be a number from 0 on, not None"),
        (dict(keep_warmup=2.0), r"train.keep_warmup must lie in \[0, 1\], not 2.0"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        settings(**options)


def test_what_cannot_be_trained_is_named(tmp_path):
    def starts(kind="fusion", used=None, given=None, **options):
        train(tiny(), given or examples(), used or pruner(), settings(kind, **options), tmp_path / "run")

    with pytest.raises(ValueError, match="nothing to train"):
        starts("lora", lora_targets=["nowhere"])
    with pytest.raises(ValueError, match="fusion 'rollout' has none"):
        starts(used=pruner(fusion="rollout"))
    with pytest.raises(ValueError, match="reducer 'drop' has no module"):
        starts("compressor")
    with pytest.raises(ValueError, match="do not fill one step's batch of 64"):
        starts(batch_size=64)
    with pytest.raises(ValueError, match="keep_random needs a keep_ratio"):
        starts(used=prunekit.Pruner(keep_tokens=5), keep_random=[0.5])
    with pytest.raises(ValueError, match=r"keep_random must list ratios in \(0, 1\], not 2"):
        starts(keep_random=[2])
    with pytest.raises(ValueError, match="the loss does not depend on what trains"):
        starts(gate="none")


def test_a_model_with_everything_frozen_is_named():
    made = tiny()
    made.model.model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(ValueError, match="train=projector: nothing to train, everything in 'llava' is frozen"):
        TrainedModel(made.model, pruner(), settings("projector"))


def test_a_dataset_without_answers_is_named(tmp_path):
    from dataclasses import replace

    given = [*examples(8), replace(examples(1)[0], id="row-9", answers=())]
    with pytest.raises(ValueError, match="example 'row-9' has no answer"):
        train(tiny(), given, pruner(), settings(), tmp_path)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_the_batch(tmp_path, monkeypatch):
    forward, calls = TrainedModel.forward, []

    def breaks(self, labels, **inputs):
        calls.append(1)
        parts = forward(self, labels, **inputs)
        return {**parts, "lm": parts["lm"] * (torch.nan if len(calls) == 3 else 1.0)}

    monkeypatch.setattr(TrainedModel, "forward", breaks)
    with pytest.raises(ValueError, match=r"step 3, batch \[train-\d+-\d+, .*the loss is nan.*checkpoint-2"):
        run(tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"
    assert not (tmp_path / "fusion.safetensors").exists()


def test_weights_that_are_not_finite_are_never_stored(tmp_path, monkeypatch):
    made = tiny()
    used = pruner()
    on_step, calls = torch.optim.AdamW.step, []

    def breaks(self, *args, **kwargs):
        calls.append(1)
        on_step(self, *args, **kwargs)
        if len(calls) == 4:
            self.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", breaks)
    with pytest.raises(ValueError, match=r"step 4: weights are not finite .*checkpoint-2"):
        train(made, examples(), used, settings(), tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"


def test_a_folder_of_another_configuration_is_not_resumed(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"another configuration \(train\.sparsity: 0\.0 there, 0\.5 here\)"):
        run(tmp_path, resume=True, sparsity=0.5)
    with pytest.raises(ValueError, match="resume=true goes on"):
        run(tmp_path)


def test_weights_for_another_depth_are_refused_by_name(tmp_path):
    save_file({"weights": torch.ones(12)}, tmp_path / "other.safetensors")
    used = pruner(fusion=prunekit.create("fusion", "learned", weights=str(tmp_path / "other.safetensors")))
    with pytest.raises(ValueError, match=r"other.safetensors' is for 12 layers, the decoder has 4"):
        train(tiny(), examples(), used, settings(), tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit this model"):
        save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "trained.safetensors")
        attach(tiny().model, tmp_path)
    with pytest.raises(ValueError, match="neither an adapter nor trained weights"):
        attach(tiny().model, tmp_path / "nowhere")
