"""``task=train`` on the command line: a run's files, two processes, bad input in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import prunekit
from commands import run_main
from offline_wandb import OfflineRun
from paths import ROOT
from prunekit.data import load
from prunekit.train.trainer import PruneTrainer
from tools.embedded.config import Size, build_model
from tools.embedded.export import export

DEPTH = 4


@pytest.fixture(scope="session")
def folder_of_a_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    size = Size(image=96, tower_layers=2, tower_width=32, tower_mlp=48, layers=DEPTH, width=32, mlp=48, heads=2)
    export(build_model(size, seed=0), size, folder, {})
    return folder


def options(model, run_dir, *more):
    fixed = ["task=train", "model=hf", f"model.name={model}", f"hydra.run.dir={run_dir}", "logger.mode=disabled"]
    sizes = ["train.max_steps=3", "train.batch_size=4", "train.log_steps=1", "data.limit=14", "data.max_new_tokens=2"]
    return [*fixed, "device=cpu", *sizes, *more]


def test_a_run_writes_its_artifacts_and_evaluates_them(monkeypatch, tmp_path, folder_of_a_model):
    """Logged to W&B offline as well, both parts of the loss apart."""
    run = tmp_path / "run"
    words = ["train.sparsity=0.5", "train.penalty=l1", "logger.mode=offline", "data.split=validation"]
    code, out, err = run_main(monkeypatch, *options(folder_of_a_model, run, *words))
    assert code == 0, err
    for name in ("pruner.yaml", "fusion.safetensors", "fusion.png", "metrics.json", "predictions.jsonl", "train.json"):
        assert (run / name).stat().st_size > 0
    assert load_file(run / "fusion.safetensors")["weights"].shape == (DEPTH,)
    assert "fusion weights by layer: 0:" in out
    rows = [json.loads(line) for line in (run / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] == pytest.approx(row["lm_loss"] + 0.5 * row["sparsity"], rel=1e-4) for row in rows)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["method"]["fusion"] == "learned" and metrics["data"] == "mini/validation"
    assert {"loss", "lm_loss", "sparsity"} <= OfflineRun(run).history["train"].keys()
    weights = f"fusion.weights={run / 'fusion.safetensors'}"
    again = [f"hydra.run.dir={tmp_path / 'again'}", "task=eval", "fusion=learned", weights]
    code, out, err = run_main(monkeypatch, *options(folder_of_a_model, run, *words, *again))
    assert code == 0, err
    assert (tmp_path / "again" / "predictions.jsonl").read_text() == (run / "predictions.jsonl").read_text()


def test_a_lora_run_is_evaluated_by_its_folder(monkeypatch, tmp_path, folder_of_a_model):
    run = tmp_path / "run"
    code, _, err = run_main(monkeypatch, *options(folder_of_a_model, run, "train=lora", "train.learning_rate=0.03"))
    assert code == 0, err
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["peft_type"] == "LORA" and (run / "adapter" / "adapter_model.safetensors").exists()
    again = [f"hydra.run.dir={tmp_path / 'again'}", "task=eval", f"model.adapter={run}"]
    code, _, err = run_main(monkeypatch, *options(folder_of_a_model, run, *again))
    assert code == 0, err
    assert (tmp_path / "again" / "predictions.jsonl").read_text() == (run / "predictions.jsonl").read_text()


@pytest.mark.parametrize("what", ["fusion", "lora"])
def test_two_processes_are_one_with_twice_the_batch(monkeypatch, tmp_path, folder_of_a_model, what):
    """``--multi_gpu`` is accelerate's word for several local processes; without GPUs they talk through gloo."""
    shared = [f"train={what}", f"train.evaluate={what == 'lora'}", "train.sparsity=0.2", "train.keep_random=[0.1,0.5]"]
    two = options(folder_of_a_model, tmp_path / "two", *shared, "train.batch_size=2")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, "-m", "prunekit", *two], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = options(folder_of_a_model, tmp_path / "one", *shared, "train.batch_size=4")
    code, _, err = run_main(monkeypatch, *one)
    assert code == 0, err
    file = "fusion.safetensors" if what == "fusion" else "adapter/adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in ours)
    journals = [(tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("one", "two")]
    if what == "lora":  # both processes evaluate what has been trained
        rows = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
        assert rows[0]["examples"] == rows[1]["examples"] == 14
    for a, b in zip(*(map(json.loads, lines) for lines in journals), strict=True):
        for name in ("loss", "lm_loss", "sparsity", "keep_ratio", "epoch"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["train.sparsity=-1"], "train.sparsity must be a number from 0 on, not -1"),
        (["train=lorra"], "Did you mean 'lora'"),
        (["train=compressor"], "reducer 'drop' has no module to train"),
        (["train.split=trian"], "Did you mean 'train'"),
        (["train.keep_random=[0.5,2]"], "train.keep_random must list ratios in (0, 1], not 2"),
        (["train.penalty=l2"], "Unknown train.penalty 'l2'"),
        (["train.split=test"], "'mini/test' would be learned from and evaluated on"),
        (["logger.mode=onlin"], "Did you mean 'online'"),
        (["batch_size=0"], "batch_size must be a whole number from 1 on, not 0"),
        (["data.split=tset"], "Did you mean 'test'"),
        (["model.adapter=nowhere"], "neither an adapter nor trained weights in 'nowhere'"),
        (["fusion=learned", "fusion.weights=mini"], "is for 12 layers, the decoder has 4"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, folder_of_a_model, words, word):
    code, _, err = run_main(monkeypatch, *options(folder_of_a_model, tmp_path / "run", *words))
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 1 and len(lines) == 1 and word in lines[0], err


def test_a_file_is_not_learned_from_and_evaluated_on(monkeypatch, tmp_path, folder_of_a_model):
    """Another file is; a run that goes on must have the same one; rows without answers are told of."""
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    example = load("train", 1)[0]
    example.image().save(tmp_path / "i.png")
    row = {"image": "i.png", "question": example.question, "answers": list(example.answers)}
    for file in files:
        rows = [{"id": str(number), **row} for number in range(6)] + [{"id": "none", **row, "answers": []}]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    words = ["data=jsonl", f"data.path={files[0]}", "train.max_steps=1", "data.limit=null"]
    start = options(folder_of_a_model, tmp_path / "run")
    code, _, err = run_main(monkeypatch, *start, *words)
    assert code == 1 and "would be learned from and evaluated on" in err
    code, out, err = run_main(monkeypatch, *start, *words, f"train.path={files[1]}")
    assert code == 0, err
    assert "1 of 7 rows left out" in out
    code, out, err = run_main(monkeypatch, *start, *words, f"train.path={files[2]}", "resume=true")
    assert code == 1 and "another configuration" in err and "c.jsonl" in err
    assert "W&B" not in out  # the training that stands there is not this one's to tell of


def test_every_option_of_the_group_is_a_setting_and_has_its_default():
    from prunekit.train.settings import Settings

    fields = yaml.safe_load((ROOT / "conf" / "train" / "_base.yaml").read_text())
    assert set(fields) == set(Settings.model_fields)
    assert Settings(**{**fields, "kind": "fusion"}) == Settings()


def test_the_shipped_weights_are_what_fusion_learned_loads_for_the_embedded_model(monkeypatch, tmp_path):
    fixed = ["fusion=learned", "data.limit=7", "logger.mode=disabled", "device=cpu"]
    for name, more in {"a": [], "b": ["fusion.weights=mini"]}.items():
        code, _, err = run_main(monkeypatch, f"hydra.run.dir={tmp_path / name}", *fixed, *more)
        assert code == 0 and "uniform weights" not in err, err
    rows = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("a", "b")]
    assert rows[0] == rows[1]
    assert prunekit.create("fusion", "learned", weights="mini").weights == "mini"


def test_the_embedded_models_stages_are_run_by_the_same_command(monkeypatch, tmp_path):
    """One step of the stage that needs no pool of images; the others are the same loop (test_embedded_training.py)."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    words = ["task=train", "train=embedded", "train.stages=[drawn]", "train.max_steps=1", "train.threads=1"]
    code, _, err = run_main(monkeypatch, *words, f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    state = torch.load(tmp_path / "stages" / "drawn.pt", weights_only=True)
    assert state["step"] == 1 and len(state["optimizers"]) == 2
    code, _, err = run_main(monkeypatch, *words, f"hydra.run.dir={tmp_path}")
    assert code == 1 and "resume=true goes on" in err
    code, _, err = run_main(monkeypatch, *words, f"hydra.run.dir={tmp_path}", "resume=true", "train.stages=[grown]")
    assert code == 1 and "Unknown train.stages 'grown'" in err
    code, _, err = run_main(monkeypatch, *words, f"hydra.run.dir={tmp_path}", "resume=true", "train.stages=[joint]")
    assert code == 1 and "no checkpoint of the tower stage" in err


def test_an_installation_without_the_training_script_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("prunekit.train.embedded.SOURCE", tmp_path)
    code, _, err = run_main(monkeypatch, "task=train", "train=embedded", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert "needs a checkout of prunekit" in err and "tools/embedded/train.py" in err


def test_the_study_writes_its_table_and_goes_on_where_it_stopped(monkeypatch, tmp_path, folder_of_a_model):
    run, page = tmp_path / "run", tmp_path / "page.md"
    page.write_text("# Before\n\n<!-- sparse_finetune:begin -->\nold\n<!-- sparse_finetune:end -->\n\nafter\n")
    fixed = ["experiment=sparse_finetune", "model=hf", f"model.name={folder_of_a_model}", f"hydra.run.dir={run}"]
    sizes = [
        "train.max_steps=2",
        "train.batch_size=4",
        "data.limit=14",
        "data.max_new_tokens=2",
        "sweep.table.spread=7",
    ]
    sizes += ["train.log_steps=1", "logger.mode=disabled"]
    more = [
        "device=cpu",
        f"sweep.table.file={page}",
        "study.sparsity=[0.5]",
        "sweep.skip=[lora]",
        "sweep.table.picture=null",
    ]
    code, _, err = run_main(monkeypatch, *fixed, *sizes, *more)
    assert code == 0, err
    text = page.read_text()
    assert text.startswith("# Before") and text.rstrip().endswith("after") and "old" not in text
    labels = ["no training", "learned fusion", "LoRA, λ = 0.5", "LoRA, trained without pruning"]
    for label in labels:
        assert text.count(f"| {label} |") == 2
    cells = json.loads((run / "results.json").read_text())["cells"]
    assert [(cell["row"], cell["section"]) for cell in cells] == [
        (name, f"keep_ratio {keep}") for name in ("none", "fusion", "lora-0.5", "dense") for keep in (0.25, 0.1)
    ]
    for cell in cells:
        rows = [json.loads(line) for line in _lines(run / cell["row"] / cell["section"].replace(" ", "_"))]
        shares = {task: [r["correct"] for r in rows if r["task"] == task] for task in {r["task"] for r in rows}}
        mean = sum(sum(right) / len(right) for right in shares.values()) / len(shares)
        assert cell["accuracy"]["mean"] == pytest.approx(mean)
    calls = []
    original = PruneTrainer.train
    monkeypatch.setattr(PruneTrainer, "train", lambda self, *args: calls.append(1) or original(self, *args))
    code, _, err = run_main(monkeypatch, *fixed, *sizes, *more, "task=study", "overwrite=true")
    assert code == 0 and len(calls) == 3, err  # each row once, for both keep ratios
    text = page.read_text()
    stamp = (run / "lora-0.5" / "training.jsonl").stat().st_mtime_ns
    code, _, err = run_main(monkeypatch, *fixed, *sizes, *more, "resume=true")
    assert code == 0, err
    assert (run / "lora-0.5" / "training.jsonl").stat().st_mtime_ns == stamp and page.read_text() == text
    code, _, err = run_main(monkeypatch, *fixed, *sizes, *more, "resume=true", "train.learning_rate=0.5")
    assert code == 1 and "another configuration (train.learning_rate" in err
    code, _, err = run_main(monkeypatch, *fixed, *sizes, *more, "resume=true", "sweep.skip=[lorra]")
    assert code == 1 and "Unknown sweep.skip 'lorra'" in err
    headings = [line for line in text.splitlines() if line.startswith("| | accuracy")]
    columns = "accuracy | against no training | against LoRA without pruning | against dense | its own dense | "
    columns += "attention on what stays | on the image | entropy | Hoyer | minutes"
    assert headings == [f"| | {columns} |"] * 2
    code, _, err = run_main(monkeypatch, "task=study", f"hydra.run.dir={tmp_path / 'bare'}")
    assert code == 1 and "experiment=sparse_finetune" in err


def _lines(folder):
    return (folder / "predictions.jsonl").read_text().splitlines()
