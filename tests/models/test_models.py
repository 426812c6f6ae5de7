"""Models from folders, as a hub's copy would be: loaded, asked through their own chat templates, evaluated and pruned
by the command; and what cannot be loaded is said in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image

import folders
import zoo
from commands import run_main
from prunekit.data.example import Example
from prunekit.data.pictures import Picture
from prunekit.evaluation.batches import Batcher
from prunekit.models import load_model
from prunekit.prompts import prompt_for, turns
from zoo.base import BOS, TEXT


@pytest.fixture
def questions(tmp_path):
    """Three questions about two pictures of different shapes."""
    Image.linear_gradient("L").resize((48, 24)).save(tmp_path / "wide.png")
    Image.radial_gradient("L").resize((24, 24)).save(tmp_path / "square.png")
    asked = [("wide.png", "what is it?"), ("square.png", "is it round? say yes or no."), ("wide.png", "how wide is it")]
    rows = [{"image": image, "question": question, "answers": ["yes"]} for image, question in asked]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def example(path, *more: str, **options) -> Example:
    pictures = tuple(Picture(path.parent / name, name) for name in ("wide.png", *more))
    names = tuple(picture.name for picture in pictures)
    return Example("0", names[0], "t", "what is it?", ("yes",), others=names[1:], pictures=pictures, **options)


@pytest.mark.parametrize("family", folders.PROCESSORS)
def test_every_family_runs_through_the_command(family, monkeypatch, tmp_path, saved, questions):
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={saved(family)}", "data=jsonl", f"data.path={questions}",
        "data.max_new_tokens=2", "logger.mode=disabled", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}",
        "schedule=one_shot", "schedule.layer=2", "keep_ratio=0.5", "batch_size=2",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and json.loads((tmp_path / "run" / "metrics.json").read_text())["metric"] == "auto"
    model = load_model(str(saved(family)), device="cpu")
    made = Batcher(model).inputs([example(questions)])
    alone = model.model.generate(**made, max_new_tokens=2, do_sample=False)[:, made["input_ids"].shape[1] :]
    (dense,) = model.processor.batch_decode(alone, skip_special_tokens=True)
    assert next(r for r in rows if r["question"] == "what is it?")["dense_prediction"] == dense.strip()
    for row in rows:
        before, after = row["tokens_per_layer"][0], row["tokens_per_layer"][-1]
        visual = before - after + len(row["kept"])
        assert len(row["kept"]) == max(1, round(0.5 * visual)) and visual > 3


@pytest.mark.parametrize("family", folders.PROCESSORS)
@pytest.mark.parametrize("template", [folders.TEMPLATE, "{{ '<bos>' }}" + folders.TEMPLATE], ids=["plain", "with bos"])
def test_inputs_are_those_of_the_processors_own_template(family, template, tmp_path, saved, questions):
    """The processor tokenizes the same turns by itself; the first token stands there once, whoever writes it."""
    folder = saved(family)
    if template != folders.TEMPLATE:
        folder = shutil.copytree(folder, tmp_path / "copy")
        file = folder / "chat_template.jinja"
        file.write_text("{{ '<bos>' }}" + file.read_text())
    loaded = load_model(str(folder), device="cpu")
    asked = example(questions, history=(("who is it?", "no"),))
    made = Batcher(loaded).inputs([asked])
    messages = turns(asked)
    messages[0]["content"][0] = {"type": "image", "image": asked.image()}
    own = loaded.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    first = 0 if made["input_ids"][0, 0] == BOS else 1
    assert first == 0 and (made["input_ids"] == BOS).sum() == 1
    assert torch.equal(made["input_ids"][0, -len(own["input_ids"][0]) :], own["input_ids"][0])


def test_a_prompt_of_ones_own(saved, questions):
    loaded = load_model(str(saved("llava")), device="cpu", prompt="user: {images}\\n{question} said:")
    assert prompt_for(loaded, example(questions)) == "user: <image>\nwhat is it? said:"
    assert prompt_for(loaded, example(questions, "square.png")) == "user: <image><image>\nwhat is it? said:"
    with pytest.raises(ValueError, match="no place for the earlier turns of '0'"):
        prompt_for(loaded, example(questions, history=(("a", "b"),)))
    assert loaded.digest != load_model(str(saved("llava")), device="cpu").digest


def test_a_device_map_places_the_model(saved, questions):
    placed = load_model(str(saved("llava")), device="cpu", device_map="cpu")
    assert placed.model.device.type == "cpu"
    plain = load_model(str(saved("llava")), device="cpu")
    made = Batcher(placed).inputs([example(questions)])
    with torch.no_grad():
        assert torch.equal(placed.model(**made).logits, plain.model(**made).logits)


def test_without_accelerate_a_device_map_names_the_extra(monkeypatch, saved):
    pytest.importorskip("accelerate")
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda *_: False)
    with pytest.raises(ValueError, match=r"device_map needs accelerate: pip install 'prunekit\[train\]'"):
        load_model(str(saved("llava")), device="cpu", device_map="auto")


def test_a_template_that_refuses_is_quoted(tmp_path, questions):
    folder = folders.save("llava", tmp_path / "m", "{{ raise_exception('only one turn please') }}")
    with pytest.raises(ValueError, match="its chat template refuses the question: only one turn please"):
        prompt_for(load_model(str(folder), device="cpu"), example(questions))


def run_bad(monkeypatch, tmp_path, questions, *arguments: str) -> str:
    fixed = ["model=hf", "data=jsonl", f"data.path={questions}", "logger.mode=disabled", "device=cpu"]
    code, _, err = run_main(monkeypatch, *fixed, f"hydra.run.dir={tmp_path / 'run'}", *arguments)
    lines = [line for line in err.splitlines() if not line.startswith(("dense", "pruned")) and line.strip()]
    assert code == 1 and "Traceback" not in err and lines[-1].startswith("prunekit: error: "), err
    return lines[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attn=spda"], ["attn 'spda'", "'sdpa'"]),
        (["attn=flash_attention_2"], ["attn=flash_attention_2 does not work here"]),
        (["dtype=float"], ["dtype 'float'", "float32"]),
        (["dtype=int8"], ["dtype 'int8'"]),
        (["model.trust_remote_code=maybe"], ["trust_remote_code", "'maybe'"]),
        (["model.revision=7"], ["model.revision", "7"]),
        (["model.device_map=7"], ["model.device_map", "7"]),
        (["model.device_map=nonsense"], ["model.device_map does not fit", "nonsense"]),
        (["model.prompt='hello'"], ["model.prompt", "{question}"]),
        (["model.prompt='{image} {question}'"], ["placeholder of model.prompt 'image'", "'images'"]),
    ],
    ids=lambda value: "-".join(value) if len(value) == 1 else "",
)
def test_options_that_do_not_fit_are_named(monkeypatch, tmp_path, saved, questions, arguments, words):
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={saved('llava')}", *arguments)
    assert all(word in line for word in words), line


def test_a_processor_without_chat_template(monkeypatch, tmp_path, questions):
    folder = folders.save("llava", tmp_path / "model", template=None)
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={folder}")
    assert "no chat template" in line and "model.prompt=" in line
    arguments = [f"model.name={folder}", "data=jsonl", f"data.path={questions}", "logger.mode=disabled", "device=cpu"]
    more = ['model.prompt="{images} {question}"', "data.max_new_tokens=1", f"hydra.run.dir={tmp_path / 'good'}"]
    assert run_main(monkeypatch, "model=hf", *arguments, *more)[0] == 0


def test_a_model_that_is_nowhere(monkeypatch, tmp_path, questions):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = run_bad(monkeypatch, tmp_path, questions, "model.name=nobody/no-such-model", "model.revision=v1")
    for word in ("'nobody/no-such-model' not found", "no such folder", "local cache", "'v1'", "HF_HUB_OFFLINE is set",
                 "model.name to a local folder", "hf download", "mini"):  # fmt: skip
        assert word in line, line


def test_folders_that_hold_no_model(monkeypatch, tmp_path, saved, questions):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in run_bad(monkeypatch, tmp_path, questions, f"model.name={tmp_path / 'empty'}")
    bare = shutil.copytree(saved("llava"), tmp_path / "bare")
    for file in bare.glob("*processor*"):
        file.unlink()
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={bare}")
    assert "model type llava" in line and "has no processor" in line
    weightless = shutil.copytree(saved("llava"), tmp_path / "weightless")
    (weightless / "model.safetensors").unlink()
    assert "model.safetensors" in run_bad(monkeypatch, tmp_path, questions, f"model.name={weightless}")


def test_a_language_model_is_no_lvlm(monkeypatch, tmp_path, saved, questions):
    folder = tmp_path / "text"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(folder)
    folders.tokenizer("<image>").save_pretrained(folder)
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={folder}")
    assert "model type llama" in line
    for file in saved("llava").glob("*processor_config.json"):
        shutil.copy(file, folder)
    assert "not a vision-language model" in run_bad(monkeypatch, tmp_path, questions, f"model.name={folder}")


def test_remote_code_is_never_run_unasked(monkeypatch, tmp_path, saved, questions):
    folder = shutil.copytree(saved("llava"), tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    entries = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": entries}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise ValueError('own code ran')\n")
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={folder}")
    assert "model.trust_remote_code=true" in line and not (tmp_path / "ran").exists()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    line = run_bad(monkeypatch, tmp_path, questions, f"model.name={folder}", "model.trust_remote_code=true")
    assert "own code ran" in line and (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [name for name, kinds in zoo.SUPPORTS.items() if kinds == ("eager",)][:1])
def test_a_model_without_sdpa_says_so(name, tmp_path, saved):
    folder = tmp_path / name
    zoo.build(name, "eager").save_pretrained(folder)
    for file in saved("llava").glob("*[!s].json"):
        if file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, folder)
    with pytest.raises(ValueError, match="has no attn=sdpa; use attn=eager"):
        load_model(str(folder), device="cpu", attn="sdpa")
