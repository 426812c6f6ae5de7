"""Batches of an evaluation: by length, with each image encoded once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import prunekit
import zoo
from prunekit.data import load
from prunekit.evaluation import batches
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.run import evaluate
from prunekit.families import support_of
from prunekit.models import load_model


def count_encoded(monkeypatch):
    """The images that go through the vision tower, in order."""
    seen: list[str] = []
    original = Batcher._encode

    def encode(self, made, rows):
        seen.extend(self.current[row] for row in rows)
        return original(self, made, rows)

    share = Batcher._share

    def remember(self, made, examples):
        self.current = [image_id for e in examples for image_id in e.image_ids]
        return share(self, made, examples)

    monkeypatch.setattr(Batcher, "_encode", encode)
    monkeypatch.setattr(Batcher, "_share", remember)
    return seen


def test_an_evaluation_encodes_each_image_once(monkeypatch, tmp_path, model_folder, capsys):
    """Dense and pruned passes and the timing together, however many questions an image has."""
    examples = load("test", limit=42)
    images = {e.image_id for e in examples}
    assert len(images) < len(examples)
    seen = count_encoded(monkeypatch)
    loaded = load_model(str(model_folder), device="cpu")
    evaluate(loaded, examples, prunekit.Pruner(), tmp_path, batch_size=5, max_new_tokens=1)
    assert sorted(seen) == sorted(images)
    shown = capsys.readouterr().err
    assert "dense" in shown and "pruned" in shown and "ex/s" in shown


def test_batches_are_of_like_length(model_folder):
    loaded = load_model(str(model_folder), device="cpu")
    batcher, examples = Batcher(loaded), load("test", limit=60)
    lengths = {e.id: len(loaded.processor.tokenizer(batcher.prompt(e)).input_ids) for e in examples}
    made = list(batcher.batches(examples, 8))
    assert sorted(e.id for batch in made for e in batch) == sorted(e.id for e in examples)
    ordered = [lengths[e.id] for batch in made for e in batch]
    assert ordered == sorted(ordered) and len(set(ordered)) > 3


def test_when_room_is_short_features_that_are_not_needed_again_go_first(monkeypatch, model_folder):
    """Two questions on one image, with the only questions on two others between them: the first image stays."""
    loaded = load_model(str(model_folder), device="cpu")
    by_image: dict[str, list] = {}
    for example in load("test", limit=60):
        by_image.setdefault(example.image_id, []).append(example)
    first, second, third = sorted(by_image.values(), key=len, reverse=True)[:3]
    assert len(first) > 1
    monkeypatch.setattr(batches, "CACHED_BYTES", int(2.5 * 144 * 32 * 4))
    seen = count_encoded(monkeypatch)
    batcher = Batcher(loaded)
    plan = [first[0], second[0], third[0], first[1]]
    list(batcher.batches(plan, 1))
    for example in plan:
        batcher.inputs([example])
    assert [seen.count(e.image_id) for e in plan[:3]] == [1, 1, 1]


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if support_of(zoo.FAMILY[name]).takes_features])
def test_answers_from_shared_features_are_those_from_pixels(name):
    model, batch = zoo.build(name, zoo.SUPPORTS[name][-1]), zoo.batch(name)
    batcher = Batcher(SimpleNamespace(model=model, processor=None, name=name))
    if not batcher.shares_features:  # an older transformers takes no features
        pytest.skip("this transformers takes no features of this family")
    examples = [SimpleNamespace(image_id=str(number), image_ids=(str(number),)) for number in range(3)]
    with torch.no_grad():
        expected = model(**batch.inputs).logits
        for _ in range(2):  # made, and remembered
            inputs = dict(batch.inputs)
            inputs["mm_encoder_outputs"] = {"image": batcher._share(inputs, examples)}
            assert "pixel_values" not in inputs
            assert (model(**inputs).logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma4"])
def test_families_that_take_more_than_features_get_their_pixels(name):
    model = zoo.build(name)
    assert not Batcher(SimpleNamespace(model=model, processor=None, name=name)).shares_features


def test_tiles_are_not_taken_for_images():
    made = {"pixel_values": torch.zeros(6, 3, 4, 4)}
    assert batches._one_an_example(made, 6) and not batches._one_an_example(made, 2)
    made["image_grid_thw"] = torch.ones(2, 3)
    assert batches._one_an_example(made, 2)
