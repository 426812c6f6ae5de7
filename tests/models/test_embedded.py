"""The shipped model: loads from its folder alone, is what its checksums say, answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from paths import ROOT
from prunekit.data import Example, load
from prunekit.data.mini import SPLITS
from prunekit.models import EMBEDDED
from tools.embedded.asking import accuracy_by_task
from tools.embedded.config import Size, build_model
from tools.embedded.export import CHECKSUMS, data_hash, sha256
from tools.embedded.forward import embed, make_masks, run_decoder
from tools.embedded.packing import IGNORE, encode, pack, positions
from tools.embedded.probe import ask, mean_accuracy, oracle_kept, prepare, random_kept
from tools.embedded.processor import build_processor, build_tokenizer

VISUAL = {"mini": 144, "mini-576": 576}
both = pytest.mark.parametrize("name", VISUAL)


@cache
def loaded(name: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    model = AutoModelForImageTextToText.from_pretrained(EMBEDDED[name], dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(EMBEDDED[name])


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return loaded("mini")[0]


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return loaded("mini")[1]


def prompts(processor: LlavaProcessor, examples: list[Example]) -> list[str]:
    def messages(example: Example) -> list[dict[str, object]]:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]

    return [processor.apply_chat_template(messages(e), add_generation_prompt=True) for e in examples]


def answers(model: LlavaForConditionalGeneration, processor: LlavaProcessor, examples: list[Example]) -> list[str]:
    images, text = [e.image() for e in examples], prompts(processor, examples)
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@both
def test_folder_is_small_and_is_what_its_checksums_say(name: str) -> None:
    folder = EMBEDDED[name]
    sums = json.loads((folder / CHECKSUMS).read_text())
    files = {path.name for path in folder.iterdir()} - {CHECKSUMS}
    assert set(sums) == files
    for file, value in sums.items():
        assert sha256(folder / file) == value, file
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    assert not [file for file in files if Path(file).suffix in {".bin", ".pt", ".pkl"}]


@both
def test_training_record_names_the_data(name: str) -> None:
    record = json.loads((EMBEDDED[name] / "training.json").read_text())
    assert record["data_sha256"] == data_hash(), "the splits differ from those the model was exported with"
    assert record["plans"]["joint"]["seed"] == 0 and record["versions"]["torch"]


@both
def test_shapes_of_the_contract(name: str) -> None:
    model, processor = loaded(name)
    assert isinstance(model, LlavaForConditionalGeneration) and isinstance(processor, LlavaProcessor)
    assert model.config.text_config.num_hidden_layers >= 8
    assert processor.tokenizer.padding_side == "left" and processor.tokenizer.pad_token_id is not None
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    examples = load("validation", 3)
    images = [e.image() for e in examples]
    inputs = processor(images=images, text=prompts(processor, examples), padding=True, return_tensors="pt")
    placeholders = inputs["input_ids"] == model.config.image_token_id
    assert placeholders.sum(1).tolist() == [VISUAL[name]] * 3 and placeholders[0].nonzero()[0] > 0
    side = 16 * math.isqrt(VISUAL[name])
    assert inputs["pixel_values"].shape == (3, 3, side, side)


def test_tokenizer_round_trip() -> None:
    tokenizer = build_tokenizer()
    for text, back in (("kzx", "kzx"), ("what is on the red sign", None), ("Two", "two"), ("yes", "yes"), ("b", "b")):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == (back or text)
    assert len(tokenizer("kzx", add_special_tokens=False).input_ids) == 3
    for split in SPLITS:
        for example in load(split)[:300]:
            ids = tokenizer(example.answers[0], add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == example.answers[0] and tokenizer.unk_token_id not in ids


def test_packed_layout_equals_the_processors() -> None:
    """Several questions packed after one image give the logits that each gives alone through the chat template."""
    size = Size(layers=3, tower_layers=2)
    model, processor = build_model(size).eval(), build_processor(size.image, size.patch)
    examples = load("validation", 4)
    assert len({e.image_id for e in examples}) == 1
    bench = prepare(model, processor.tokenizer, examples)
    asked = encode(processor.tokenizer, [(e.task, e.question, e.answers[0]) for e in examples])
    packed = pack([asked], 2, 64, processor.tokenizer.pad_token_id)
    assert packed.tasks == [[e.task for e in examples]]
    head = len(bench.prefix) + size.visual
    masks = make_masks(packed, head)
    with torch.no_grad():
        visual = model.model.multi_modal_projector(bench.features[:1])
        x = embed(model, bench.prefix, visual, packed.ids)
        hidden = run_decoder(model.model.language_model, x, positions(packed, head), lambda layer: masks)[:, head:]
    hidden = hidden.unflatten(1, packed.ids.shape[1:])
    for number, example in enumerate(examples):
        inputs = processor(images=[example.image()], text=prompts(processor, [example]), return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits[0, -1]
        last = hidden[(packed.segment == number) & packed.prompt][-1]
        torch.testing.assert_close(model.lm_head(last), expected, atol=1e-4, rtol=0)


@both
def test_gate_of_answers(name: str) -> None:
    examples = load("validation", 60)
    given = answers(*loaded(name), examples)
    right = [answer.strip().lower() in e.answers for answer, e in zip(given, examples, strict=True)]
    assert sum(right) / len(right) >= 0.9


def test_generated_answers_are_the_probes(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    examples = load("validation", 28)
    given = answers(model, processor, examples)
    right = [answer.strip().lower() in e.answers for answer, e in zip(given, examples, strict=True)]
    # the probe's teacher-forced check is greedy generation, batched and padded or not
    bench = prepare(model, processor.tokenizer, examples)
    probed = [correct for _, correct in ask(model, bench)]
    assert sum(a != b for a, b in zip(probed, right, strict=True)) <= 1


@both
def test_equal_answers_after_a_reload_and_alone(name: str) -> None:
    examples, (model, processor) = load("validation", 8), loaded(name)
    again = AutoModelForImageTextToText.from_pretrained(EMBEDDED[name], dtype=torch.float32).eval()
    batched = answers(model, processor, examples)
    assert batched == answers(again, processor, examples)
    assert batched == [answers(model, processor, [example])[0] for example in examples]


def test_the_image_matters(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Without the image the model is near chance; the answer's regions bring back much of what is lost."""
    bench = prepare(model, processor.tokenizer, load("validation", 70))
    none = torch.zeros_like(random_kept(bench, 0.5))
    dense, blind = mean_accuracy(ask(model, bench)), mean_accuracy(ask(model, bench, none, 0))
    assert blind <= 0.3 and dense - blind >= 0.5
    assert mean_accuracy(ask(model, bench, oracle_kept(bench, 0.1), 0)) >= blind + 0.3


def test_probe_hides_nothing_when_all_is_kept(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    bench = prepare(model, processor.tokenizer, load("validation", 14))
    assert ask(model, bench, torch.ones_like(bench.regions, dtype=torch.bool), 0) == ask(model, bench)
    assert (bench.packed.labels != IGNORE).flatten(1).any(dim=1).all()
    assert set(accuracy_by_task(ask(model, bench))) == {e.task for e in bench.examples}


QUESTIONS = 210


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main")
    parts = ["scorer=instruction", "fusion=multi", "schedule=progressive"]
    options = [f"data.limit={QUESTIONS}", f"hydra.run.dir={folder / 'run'}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PRUNEKIT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "prunekit", *parts, *options]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "run" / "metrics.json").read_text()), folder / "run"


def test_the_model_answers_as_recorded_and_pruning_costs_little(finished):
    """On 210 questions. The test split gave 0.966 (docs/internal/embedded-model.md), 0.04 is two standard errors."""
    _, metrics, _ = finished
    assert metrics["dense_accuracy"]["mean"] == pytest.approx(0.966, abs=0.04)
    assert metrics["dense_accuracy"]["attribute"] > 0.95
    assert metrics["change"]["mean"] >= -0.05


def test_costs_are_what_half_the_tokens_from_a_quarter_of_the_depth_on_cost(finished):
    _, metrics, _ = finished
    tokens = metrics["tokens_per_layer"]
    first, second = metrics["method"]["layers"]
    text = tokens[0] - 144
    assert tokens[first] == pytest.approx(text + 102) and tokens[second] == pytest.approx(text + 72)
    assert metrics["kv_ratio"] == pytest.approx(sum(tokens) / (len(tokens) * tokens[0]), abs=1e-3)
    assert metrics["kv_ratio"] > metrics["flops_ratio"] > 0.5


def test_the_sweep_shares_the_dense_run(finished, tmp_path):
    _, _metrics, run_folder = finished
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PRUNEKIT_CACHE": str(run_folder.parent / "cache")}
    options = ["scorer=random,visual", "data.limit=70", f"hydra.sweep.dir={tmp_path}"]
    command = [sys.executable, "-m", "prunekit", "-m", *options, "logger.mode=disabled"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "dense" not in done.stderr  # no progress bar of a dense run: all answers were kept
    metrics = [json.loads((tmp_path / job / "metrics.json").read_text()) for job in "01"]
    assert metrics[0]["dense_accuracy"] == metrics[1]["dense_accuracy"]
    assert {m["method"]["scorer"] for m in metrics} == {"random", "visual"}
