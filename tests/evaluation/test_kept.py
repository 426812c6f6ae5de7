"""``kept.npz``: what is recorded is what the pruner did, and what is written is what is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import prunekit
from fabricated import picture
from prunekit.data import load
from prunekit.errors import PrunekitError
from prunekit.evaluation import kept
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.kept import KeptCut, KeptExample, grid_boxes, read_kept, record_kept, write_kept
from prunekit.models import load_model


@pytest.fixture(scope="module")
def batcher(model_folder):
    return Batcher(load_model(str(model_folder), device="cpu"))


def test_the_record_is_what_the_trace_of_each_example_says(batcher, tmp_path):
    examples, pruner = load("test", limit=kept.EXAMPLES + 4), prunekit.Pruner(keep_ratio=0.25)
    record_kept(batcher, examples, pruner, tmp_path / "kept.npz")
    found = read_kept(tmp_path / "kept.npz")
    assert list(found) == [e.id for e in examples[: kept.EXAMPLES]]
    for example in examples[:4]:
        inputs = batcher.inputs([example], pruner)
        with torch.inference_mode(), pruner(batcher.loaded.model) as trace:
            batcher.loaded.model(**inputs)
        one = found[example.id]
        np.testing.assert_allclose(one.boxes, grid_boxes(12, 12), atol=1e-6)
        assert set(one.panels.tolist()) == {0} and len(one.cuts) == len(trace.cuts) == 2
        for mine, cut in zip(one.cuts, trace.cuts, strict=True):
            assert (mine.site, mine.layer, mine.where) == ("decoder", cut.layer, f"before layer {cut.layer}")
            assert mine.kept.tolist() == cut.kept[0].tolist()
            np.testing.assert_allclose(mine.scores, cut.scores[0].numpy(), atol=1e-5)
        assert np.isnan(one.cuts[1].scores).tolist() == (~one.cuts[0].kept).tolist()


def test_scores_without_a_say_are_not_recorded(batcher, tmp_path):
    record_kept(batcher, load("test", limit=2), prunekit.method("uniform"), tmp_path / "kept.npz")
    for one in read_kept(tmp_path / "kept.npz").values():
        assert one.cuts[0].kept.sum() == 72 and np.isnan(one.cuts[0].scores).all()


def test_examples_that_share_an_image_and_odd_ones_read_back(tmp_path):
    cut = KeptCut("input", 0, np.array([True, False]), np.array([0.5, np.nan], dtype=np.float32))
    early = KeptCut("vision", -1, np.zeros(0, dtype=bool), np.zeros(0, dtype=np.float32))
    written = [
        KeptExample(f"q{i}", "one", picture("one"), grid_boxes(1, 2), np.array([0, -1]), (early, cut)) for i in range(2)
    ]
    written += [KeptExample("q<2>", "two", picture("two"), None, None, ())]
    write_kept(tmp_path / "kept.npz", written)
    read = read_kept(tmp_path / "kept.npz")
    assert list(read) == ["q0", "q1", "q<2>"] and read["q1"].image == picture("one") and read["q<2>"].boxes is None
    assert read["q0"].boxes.tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]] and read["q0"].panels.tolist() == [0, -1]
    assert [c.where for c in read["q1"].cuts] == ["before the encoder", "before the decoder"]
    assert read["q1"].cuts[1].kept.tolist() == [True, False] and np.isnan(read["q1"].cuts[1].scores[1])
    assert read_kept(tmp_path / "none.npz") == {} and not list(tmp_path.glob("*.part"))


def test_a_record_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SCHEMA", 3)
    write_kept(tmp_path / "kept.npz", [])
    monkeypatch.setattr(kept, "SCHEMA", 2)
    with pytest.raises(PrunekitError, match="schema 3; this prunekit reads up to 2"):
        read_kept(tmp_path / "kept.npz")


def test_a_record_of_the_first_schema_is_read(tmp_path):
    """One image, tokens in rows of a grid."""
    listed = {"id": "q", "image": "one", "grid": [2, 3], "cuts": [["input", 0]]}
    info = json.dumps({"schema": 1, "images": ["one"], "examples": [listed]})
    arrays = {"image_0": np.frombuffer(picture("one"), dtype=np.uint8), "kept_0_0": np.arange(6) > 2}
    np.savez(tmp_path / "kept.npz", info=np.array(info), scores_0_0=np.ones(6, dtype=np.float32), **arrays)
    old = read_kept(tmp_path / "kept.npz")["q"]
    np.testing.assert_allclose(old.boxes[4], [1 / 3, 0.5, 2 / 3, 1], atol=1e-6)
    assert old.panels.tolist() == [0] * 6
