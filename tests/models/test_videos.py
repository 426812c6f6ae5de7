"""Models asked about videos: prompts, frames and times as the model's own processor makes them, and the command."""

from __future__ import annotations

import json

import pytest
import torch

import folders
from commands import run_main
from fabricated import png
from films import write_film
from prunekit.data.source import open_source
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.kept import read_kept
from prunekit.models import load_model
from prunekit.prompts import prompt_for, turns
from prunekit.train.batches import Collator

pytest.importorskip("av")


@pytest.fixture
def questions(tmp_path):
    """Questions about a film of 20 frames at 10 a second, about a picture, and about both."""
    write_film(tmp_path / "film.mp4", 20)
    (tmp_path / "a.png").write_bytes(png("red", (48, 24)))
    media = [{"video": "film.mp4"}, {"image": "a.png"}, {"image": "a.png", "video": "film.mp4"}, {"video": "none.mp4"}]
    texts = ["what is it?", "is it round?", "which of them is red?", "who?"]
    rows = [{**shown, "question": text, "answers": ["yes"]} for shown, text in zip(media, texts, strict=True)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def examples(path, **options):
    return [e for e in open_source({"name": "jsonl", "path": str(path), **options}) if e.question != "who?"]


@pytest.mark.parametrize("family", folders.VIDEOS)
def test_videos_and_images_through_the_command(family, monkeypatch, tmp_path, saved, questions):
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved(family)}", "data=jsonl", f"data.path={questions}", "data.frames=4",
        "data.max_new_tokens=2", "logger.mode=disabled", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}",
        "schedule=one_shot", "schedule.layer=2", "keep_ratio=0.5", "batch_size=2",
    )  # fmt: skip
    assert code == 0, err
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "run" / "predictions.jsonl").open())}
    assert "No such file" in rows["4"]["error"] and len(rows) == 4
    model = load_model(str(saved(family)), device="cpu")
    for example in examples(questions, frames=4):
        tensors, row = Batcher(model).inputs([example]), rows[example.id]
        alone = model.model.generate(**tensors, max_new_tokens=2, do_sample=False)[:, tensors["input_ids"].shape[1] :]
        (dense,) = model.processor.batch_decode(alone, skip_special_tokens=True)
        assert row["dense_prediction"] == dense.strip()
        before, after = row["tokens_per_layer"][0], row["tokens_per_layer"][-1]
        assert before == tensors["input_ids"].shape[1]
        visual = before - after + len(row["kept"])
        assert len(row["kept"]) == max(1, round(0.5 * visual)) and visual > 3
    assert (tmp_path / "run" / "kept.png").is_file()
    film, image, both = list(read_kept(tmp_path / "run" / "kept.npz").values())
    frames = int(film.panels.max()) + 1
    assert frames in (2, 4)  # Qwen-VL joins two
    assert (image.panels is None) == (family == "internvl")  # in how many rows its tiles stand is not known
    assert image.panels is None or int(both.panels.max()) == int(image.panels.max()) + frames


@pytest.mark.parametrize("family", folders.VIDEOS)
def test_the_video_stands_where_an_image_would(family, saved, questions):
    loaded = load_model(str(saved(family)), device="cpu")
    video, image, both = examples(questions, frames=4)
    token = loaded.processor.video_token
    assert [part["type"] for part in turns(both)[0]["content"]] == ["image", "video", "text"]
    assert prompt_for(loaded, video).count(token) == 1 and token not in prompt_for(loaded, image)
    assert prompt_for(loaded, video).index(token) < prompt_for(loaded, video).index("what is it?")
    own = load_model(str(saved(family)), device="cpu", prompt="user: {images} {question} said:")
    assert prompt_for(own, video) == f"user: {token} what is it? said:"
    assert prompt_for(own, both) == f"user: {own.processor.image_token}{token} which of them is red? said:"


def test_qwen3_vl_sees_what_its_own_sampling_would_give(saved, questions):
    """Pixels, and the seconds in the prompt, against the processor that samples the whole video by itself."""
    loaded = load_model(str(saved("qwen3_vl")), device="cpu")
    (sampled, *_), (whole, *_) = examples(questions, frames=4), examples(questions, frames=20)
    tensors = Batcher(loaded).encoded([sampled])
    own = loaded.processor(
        videos=[whole.clip().array()], video_metadata=[{"total_num_frames": 20, "fps": 10.0}], do_sample_frames=True,
        num_frames=4, fps=None, text=[prompt_for(loaded, sampled)], return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(tensors["input_ids"], own["input_ids"])
    assert torch.equal(tensors["pixel_values_videos"], own["pixel_values_videos"])
    text = loaded.processor.decode(tensors["input_ids"][0]).replace(" ", "")
    assert [text.count(time) for time in ("0.3seconds", "1.6seconds")] == [1, 1]  # frames 0 and 6, 13 and 19


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qwen2_5_vl_knows_how_far_frames_are_apart(dtype, saved, questions):
    """Six of 20 frames at 10 a second are three a second; a step of its grid is two frames."""
    loaded = load_model(str(saved("qwen2_5_vl")), device="cpu", dtype=dtype)
    (video, *_) = examples(questions, frames=6)
    (pace,) = Batcher(loaded).inputs([video])["second_per_grid_ts"]
    assert float(pace) == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("family", folders.VIDEOS)
def test_a_batch_of_videos_of_unequal_length(family, monkeypatch, tmp_path, saved, questions):
    """Sampled by rate: models that stack videos answer them one by one, and none is lost."""
    write_film(questions.parent / "long.mp4", 37)
    rows = [{"video": name, "question": "what?", "answers": ["a"]} for name in ("film.mp4", "long.mp4") * 2]
    questions.write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved(family)}", "data=jsonl", f"data.path={questions}", "data.fps=3",
        "data.max_new_tokens=1", "logger.mode=disabled", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    lengths = {row["prompt_tokens"] for row in rows}
    assert len(rows) == 4 and not any("error" in row for row in rows) and len(lengths) == 2


def test_a_model_or_a_template_that_takes_no_video(tmp_path, monkeypatch, saved, questions, model_folder):
    (video, *_) = examples(questions, frames=2)
    with pytest.raises(ValueError, match=r"takes no videos: LlavaProcessor reads images alone"):
        prompt_for(load_model(str(saved("llava")), device="cpu"), video)
    dropping = folders.TEMPLATE.replace("VIDEO", "")
    loaded = load_model(str(folders.save("llava_onevision", tmp_path / "model", dropping)), device="cpu")
    with pytest.raises(ValueError, match="its chat template leaves the video out"):
        prompt_for(loaded, video)
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={model_folder}", "data=jsonl", f"data.path={questions}", "data.frames=4",
        "logger.mode=disabled", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code in (1, 2) and "takes no videos" in err and "Traceback" not in err


@pytest.mark.parametrize("shown", [["video", "image"], ["image"]])
def test_a_method_that_needs_frames_on_images(shown, monkeypatch, tmp_path, saved, questions):
    """An image among videos is an error of its row; images alone end the run in one line."""
    files = {"video": "film.mp4", "image": "a.png"}
    rows = [{kind: files[kind], "question": f"{kind}?", "answers": ["a"]} for kind in shown]
    questions.write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved('llava_onevision')}", "data=jsonl", f"data.path={questions}",
        "data.max_new_tokens=1", "method=evs", "keep_ratio=0.5", "logger.mode=disabled", "device=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    predictions = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    assert ["error" in row for row in sorted(predictions, key=lambda row: -len(row))] == [False, True][-len(shown) :]
    assert any("'evs' compares frames, and needs videos of at least 2" in row.get("error", "") for row in predictions)
    if "video" in shown:
        assert code == 0, err
    else:
        assert code in (1, 2) and "none of the first 1 examples is usable" in err and "Traceback" not in err


def test_training_batches_hold_videos(saved, questions):
    loaded = load_model(str(saved("qwen2_5_vl")), device="cpu")
    (video, *_) = examples(questions, frames=4)
    batch = Collator(loaded)([video])
    batch.pop("ids")
    assert loaded.model(**batch).loss.isfinite() and batch["pixel_values_videos"].numel()
