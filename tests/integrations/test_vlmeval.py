"""The model that VLMEvalKit calls, driven as its ``infer_data`` does; tools/measure_vlmeval.py runs the real one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import prunekit
from films import write_film
from paths import ROOT
from prunekit.data.source import open_source
from prunekit.errors import PrunekitError
from prunekit.evaluation.run import evaluate
from prunekit.models import load_model
from prunekit.vlmeval import FAILED, Prunekit

OPTIONS = {"method": "fastv", "keep_ratio": 0.25, "device": "cpu", "max_new_tokens": 3}


@pytest.fixture
def rows(tmp_path):
    """Questions about one or two pictures, and a picture that is none."""
    Image.linear_gradient("L").resize((48, 24)).save(tmp_path / "wide.png")
    Image.radial_gradient("L").resize((24, 24)).save(tmp_path / "round.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shown = [["wide.png"], ["round.png"], ["wide.png", "round.png"], ["broken.png"]]
    questions = [{"image": files, "question": f"what is in {len(files)}?", "answers": ["x"]} for files in shown]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return questions


def infer_data(model: Prunekit, structs: list) -> list[str]:
    """The calls that VLMEvalKit's loop of this name makes."""
    model.set_dump_image(lambda line: line)
    assert not model.is_api and not model.use_custom_prompt("Mine")
    return [model.generate(message=struct, dataset="Mine") for struct in structs]


def message(folder, row) -> list[dict]:
    images = [{"type": "image", "value": str(folder / file)} for file in row["image"]]
    return [*images, {"type": "text", "value": row["question"]}]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_are_those_of_prunekits_own_evaluation(family, tmp_path, rows, saved):
    model = Prunekit(str(saved(family)), **OPTIONS)
    answers = infer_data(model, [message(tmp_path, row) for row in rows])
    loaded = load_model(str(saved(family)), device="cpu")
    examples = list(open_source({"name": "jsonl", "path": str(tmp_path / "rows.jsonl")}))
    pruner = prunekit.method("fastv", keep_ratio=0.25)
    own = evaluate(loaded, examples, pruner, tmp_path / "run", max_new_tokens=3, batch_size=1)
    assert answers[:3] == [row["prediction"] for row in sorted(own.rows, key=lambda r: r["id"])]
    assert answers[3].startswith(FAILED) and "broken.png" in answers[3]
    dense = Prunekit(str(saved(family)), **{**OPTIONS, "keep_ratio": 1.0})
    expected = [row["dense_prediction"] for row in sorted(own.rows, key=lambda r: r["id"])]
    assert infer_data(dense, [message(tmp_path, row) for row in rows[:3]]) == expected


def test_texts_and_pictures_keep_their_order(tmp_path, rows, saved):
    model = Prunekit(str(saved("llava")), **OPTIONS)
    parts = [
        {"type": "text", "value": "before"}, {"type": "image", "value": str(tmp_path / "wide.png")},
        {"type": "text", "value": "between"}, {"type": "image", "value": str(tmp_path / "round.png")},
    ]  # fmt: skip
    asked = []
    encoded = model.batcher.encoded
    model.batcher.encoded = lambda examples: asked.extend(map(model.batcher.prompt, examples)) or encoded(examples)
    model.generate(parts)
    assert "before<image>between<image>" in asked[0]


def test_a_question_without_a_picture_is_answered_by_the_dense_model(saved):
    model = Prunekit(str(saved("llava")), **OPTIONS)
    loaded = load_model(str(saved("llava")), device="cpu")
    prompt = loaded.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "who?"}]}], add_generation_prompt=True
    )
    inputs = loaded.processor(text=[prompt], return_tensors="pt")
    with torch.no_grad():
        tokens = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    expected = loaded.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [model.generate("who?")] == [model.generate([{"type": "text", "value": "who?"}])] == [expected[0].strip()]


def test_a_video_is_sampled_as_the_data_set_asks(tmp_path, saved):
    pytest.importorskip("av")
    write_film(tmp_path / "film.mp4", 20)
    model = Prunekit(str(saved("qwen2_5_vl")), **OPTIONS)
    seen = []
    encoded = model.batcher.encoded
    model.batcher.encoded = lambda examples: seen.extend(e.clip().indices for e in examples) or encoded(examples)
    asked = [{"type": "video", "value": str(tmp_path / "film.mp4")}, {"type": "text", "value": "what?"}]
    for nframe, fps, count in ((4, -1, 4), (None, 3, 6)):
        model.nframe, model.fps = nframe, fps
        assert not model.generate(asked).startswith(FAILED) and len(seen[-1]) == count
    assert "2 videos" in model.generate([asked[0], *asked])
    assert "'audio'" in model.generate([{"type": "audio", "value": "x.wav"}])


@pytest.mark.parametrize(
    ("options", "word"),
    [({"method": "fastvv"}, "Did you mean 'fastv'"), ({"kep_ratio": 0.5}, "Did you mean 'keep_ratio'"),
     ({"quantization": "int7"}, "int7"), ({"schedule": "one_shot", "schedule.layer": 9}, "layer 9")],
)  # fmt: skip
def test_bad_options(options, word, saved):
    with pytest.raises(PrunekitError, match=word):
        Prunekit(str(saved("llava")), device="cpu", **options)


def test_the_command_adds_the_class_and_runs_a_checkouts_run_py(tmp_path):
    package = tmp_path / "vlmeval" / "vlm"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    run = "import sys, vlmeval.vlm\nprint(vlmeval.vlm.Prunekit.VIDEO_LLM, sys.argv[1:])\nvlmeval.vlm.Prunekit('x', a=1)"
    (tmp_path / "run.py").write_text(run)
    command = [sys.executable, "-m", "prunekit.vlmeval", "--config", "c.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, text=True, capture_output=True
    )
    assert done.stdout.strip() == "True ['--config', 'c.json']"
    assert done.returncode == 1 and done.stderr.startswith("prunekit: error: Unknown model_args: 'a'.")
    assert "Traceback" not in done.stderr


def test_without_vlmevalkit_one_line_says_so(tmp_path):
    code = "import sys; sys.modules['vlmeval'] = None; from prunekit.vlmeval import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert done.returncode == 1 and done.stderr.startswith("prunekit: error: VLMEvalKit cannot be imported")
