"""What a video costs: every frame in the encoder, its tokens in the decoder; against torch's own counter."""

from __future__ import annotations

import json

import pytest
import torch

import folders
from commands import run_main
from films import write_film
from prunekit.cost import estimate, flop_counter, shape_of
from prunekit.cost.prefill import vision_macs
from prunekit.data.source import open_source
from prunekit.evaluation.batches import Batcher
from prunekit.families import make_family
from prunekit.models import load_model

pytest.importorskip("av")
FRAMES = 4
FAMILIES = [name for name in folders.VIDEOS if name != "internvl"]  # whose frames come as images


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """``encoded(family)``: its tiny model, folder, and the inputs of a question about four frames."""
    families, folder = {}, tmp_path_factory.mktemp("film")
    write_film(folder / "a.mp4", 12)
    (folder / "q.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "what?", "answers": ["a"]}))

    def of(family: str):
        if family not in families:
            saved = folders.save(family, tmp_path_factory.mktemp(family))
            loaded = load_model(str(saved), device="cpu")
            (example,) = open_source({"name": "jsonl", "path": str(folder / "q.jsonl"), "frames": FRAMES})
            families[family] = loaded.model, saved, Batcher(loaded).encoded([example])
        return families[family]

    return of, folder / "q.jsonl"


@pytest.mark.parametrize("family", folders.VIDEOS)
def test_the_encoder_is_counted_for_every_frame(family, encoded):
    model, _, inputs = encoded[0](family)
    kind, names = ("video", ("pixel_values_videos", "video_grid_thw"))
    if family == "internvl":
        kind, names = "image", ("pixel_values",)
    with torch.no_grad(), flop_counter() as counter:
        getattr(model.model, f"get_{kind}_features")(**{name: inputs[name] for name in names if name in inputs})
    counted = vision_macs(make_family(model), inputs)
    assert 2 * counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    video = inputs.get("pixel_values_videos")
    dropped = {"pixel_values_videos": video[:, :2]} if video is not None and video.ndim == 5 else {}
    if dropped:  # half the frames, half the cost
        assert vision_macs(make_family(model), dropped) == pytest.approx(counted / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_estimate_with_frames_is_what_torch_counts(family, encoded):
    model, _, inputs = encoded[0](family)
    visual = int(make_family(model).find_visual(inputs["input_ids"], dict(inputs)).sum())
    shape, text = shape_of(model), inputs["input_ids"].shape[1] - visual
    cost = estimate(shape, visual=visual, text=text, convention="counter", frames=FRAMES)
    with torch.no_grad(), flop_counter() as counter:
        cache = model(**inputs, logits_to_keep=1, use_cache=True).past_key_values
    assert 2 * cost.total == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.kv_bytes == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 2
    if "qwen" not in family:  # frames of one size, whatever becomes of their tokens
        twice = estimate(shape, visual=visual, text=text, convention="counter", frames=2 * FRAMES)
        assert (twice.vision, twice.projector) == (2 * cost.vision, 2 * cost.projector)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_metrics_count_the_frames(family, monkeypatch, tmp_path, encoded):
    model, saved, inputs = encoded[0](family)
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved}", "data=jsonl", f"data.path={encoded[1]}",
        f"data.frames={FRAMES}",
        "data.max_new_tokens=1", "schedule=one_shot", "schedule.layer=2", "logger.mode=disabled", "device=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    config, vision = model.config.get_text_config(), vision_macs(make_family(model), inputs)
    d, m = config.hidden_size, config.intermediate_size
    macs = [4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in metrics["tokens_per_layer"]]
    dense = len(macs) * macs[0]
    assert metrics["flops_ratio"] == pytest.approx(sum(macs) / dense)
    assert metrics["flops_ratio_with_vision"] == pytest.approx((sum(macs) + vision) / (dense + vision))
    before = metrics["tokens_per_layer"][0]
    assert metrics["kv_ratio"] == pytest.approx(sum(metrics["tokens_per_layer"]) / (len(macs) * before))
    assert before == inputs["input_ids"].shape[1] and metrics["prefill_ratio_includes_vision"]


def test_frames_below_one_are_refused(encoded):
    model, *_ = encoded[0]("llava_onevision")
    with pytest.raises(ValueError, match="cost: frames must be at least 1, not 0"):
        estimate(shape_of(model), visual=5, text=3, frames=0)
