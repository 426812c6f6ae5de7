"""The bench on videos: prompts of so many frames, of a shape that takes them and of a model."""

from __future__ import annotations

import json

import pytest
import torch

import zoo
from commands import run_main
from films import write_film
from prunekit.bench import shapes
from prunekit.bench.workload import from_example, noise_video, synthetic
from prunekit.cost import estimate
from prunekit.evaluation.batches import Batcher
from prunekit.families import make_family
from prunekit.models import load_model

pytest.importorskip("av")

SMALL = ["bench.rounds=1", "bench.new_tokens=1", "bench.eager=false", "method=fastv", "device=cpu"]


@pytest.fixture
def tiny_shape(monkeypatch):
    vision = {**shapes._SIGLIP_TOY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text = shapes._llama(32, 64, 4, 4, vocab=256)
    monkeypatch.setitem(shapes.SHAPES, "tiny-video", shapes._onevision(text, vision))
    monkeypatch.setitem(shapes.VIDEO, "tiny-video", shapes.VIDEO["small-video"])
    return "tiny-video"


@pytest.mark.parametrize("frames", [1, 3])
def test_a_shape_makes_of_frames_what_it_says(frames, tiny_shape):
    """As many features come out of its encoder as the bench asks for."""
    model = shapes.build(tiny_shape, torch.device("cpu"), torch.float32)
    count = shapes.video_tokens(tiny_shape).count(frames)
    work = synthetic(model, count, 8, 2, frames)
    with torch.no_grad():
        assert work.vision().pooler_output.shape == (2, count, 32)
        assert model(**work.inputs()).logits.isfinite().all()
    ids = work.inputs()["input_ids"]
    assert (ids == model.config.video_token_index).sum() == 2 * count == 2 * (196 * frames + 1)


def test_pairs_of_frames_on_a_grid():
    model = zoo.build("qwen2_5_vl").eval()
    work = synthetic(model, shapes.VideoTokens(6, joined=2).count(5), 8, 2, 5)
    with torch.no_grad():
        assert work.visual == 18 and sum(len(part) for part in work.vision().pooler_output) == 2 * 18
        assert model(**work.inputs()).logits.isfinite().all()
    assert work.inputs()["video_grid_thw"].tolist() == [[3, 4, 6]] * 2


def test_the_command_with_a_shape(monkeypatch, tmp_path, tiny_shape):
    code, out, err = run_main(
        monkeypatch, "task=bench", f"shape={tiny_shape}", "bench.frames=3", "bench.text_tokens=16", *SMALL,
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    (point,) = json.loads((tmp_path / "run" / "bench.json").read_text())["points"]
    assert (point["frames"], point["visual_tokens"]) == (3, 589) and "589 visual (3 frames)" in out
    shape = shapes.config_of(tiny_shape)
    from prunekit.cost import shape_of

    cost = estimate(shape_of(shape), visual=589, text=16, frames=3, before=8, decode=1)
    assert point["flops"]["dense"] == cost.flops and point["vision_s"]["median"] > 0
    tokens, patches = 3 * 729, 729
    layer = 4 * 16 * 16 + 2 * 16 * 32
    assert cost.vision == 2 * (tokens * layer + 3 * patches**2 * 2 * 16) + tokens * 3 * 14**2 * 16
    assert cost.projector == tokens * (16 * 32 + 32 * 32)  # before its patches are pooled


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_the_command_with_a_model(family, monkeypatch, tmp_path, saved):
    code, _, err = run_main(
        monkeypatch, "task=bench", "model=hf", f"model.name={saved(family)}", "bench.frames=4", *SMALL,
        "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    (point,) = json.loads((tmp_path / "run" / "bench.json").read_text())["points"]
    loaded = load_model(str(saved(family)), device="cpu")
    tensors = Batcher(loaded).inputs([noise_video(4)])
    assert point["visual_tokens"] == int(make_family(loaded.model).find_visual(tensors["input_ids"], tensors).sum())
    assert point["frames"] == 4 and point["contenders"]["pruned"]["kv_bytes"] < point["contenders"]["dense"]["kv_bytes"]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_a_prefill_from_features_is_that_from_pixels(family, saved):
    """The encoder is timed apart, and what it gives stands for the pixels."""
    loaded = load_model(str(saved(family)), device="cpu")
    work, tensors = from_example(loaded, noise_video(4), 1), Batcher(loaded).inputs([noise_video(4)])
    assert "pixel_values_videos" in tensors and not any(name.startswith("pixel") for name in work.inputs())
    with torch.no_grad():
        assert torch.allclose(loaded.model(**work.inputs()).logits, loaded.model(**tensors).logits, atol=1e-5)
        assert work.vision() is not None


def test_a_question_about_a_video_of_the_data(monkeypatch, tmp_path, saved):
    write_film(tmp_path / "a.mp4", 9)
    (tmp_path / "q.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "what?", "answers": ["a"]}))
    code, _, err = run_main(
        monkeypatch, "task=bench", "model=hf", f"model.name={saved('llava_onevision')}", "data=jsonl", "data.frames=5",
        f"data.path={tmp_path / 'q.jsonl'}", *SMALL, "logger.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    (point,) = json.loads((tmp_path / "run" / "bench.json").read_text())["points"]
    assert (point["frames"], point["visual_tokens"]) == (5, 6)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["shape=small", "bench.frames=4"], "shape 'small' takes no videos; llava-onevision-7b, small-video, "),
        (["shape=small-video", "bench.frames=0"], "bench.frames must be a whole number from 1 on or null, not 0"),
        (["shape=small-video", "bench.frames=4", "bench.visual_tokens=[9]"], "bench.frames and bench.visual_tokens"),
        (["model=mini", "bench.frames=4"], "model 'mini' takes no videos"),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_benched_are_said(options, line, monkeypatch, tmp_path):
    code, _, err = run_main(monkeypatch, "task=bench", *options, *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    assert code in (1, 2) and line in err and "Traceback" not in err
