"""Several processes share one run: the same rows and metrics as one process, in one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import arguments, run_main
from paths import ROOT
from processes import together
from prunekit import models, ranks
from prunekit.data import load
from prunekit.digests import id_number
from prunekit.errors import PrunekitError
from prunekit.evaluation.windows import Walk
from prunekit.pruning.recipe import DEFAULTS
from prunekit.records import rows
from prunekit.run import objects
from prunekit.run.config import BenchConfig, parse
from runs import lines, measured, run

COUNT = 26
"""Over two processes, in batches of 5: 14 and 12, a remainder on both sides."""


def test_two_processes_find_what_one_does(tmp_path, loaded):
    examples = load("test", COUNT)
    examples[9] = replace(examples[9], error="rows.jsonl row 9: no answer")
    run(loaded, tmp_path / "one", examples, batch_size=5)
    shares = tmp_path / "shares"
    shares.mkdir()

    def work():
        original = rows.gather

        def gather(folder, places, name):
            for path in folder.glob("predictions.rank*.jsonl"):
                (shares / path.name).write_bytes(path.read_bytes())
            original(folder, places, name)

        rows.gather = gather
        found = run(loaded, tmp_path / "two", examples, batch_size=5)
        (shares / f"found{ranks.rank()}.json").write_text(json.dumps([found.metrics, found.rows]))

    assert together([work, work]) == [0, 0]
    assert lines(tmp_path / "two") == lines(tmp_path / "one") and len(lines(tmp_path / "two")) == COUNT
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
    split = [len(path.read_text().splitlines()) for path in sorted(shares.glob("*.jsonl"))]
    assert split == [14, 12]
    found = [json.loads((shares / f"found{n}.json").read_text()) for n in (0, 1)]
    assert found[0] == found[1] and len(found[0][1]) == COUNT - 1
    assert sorted(p.name for p in (tmp_path / "two").iterdir() if not p.name.startswith(".")) == [
        "kept.npz",
        "metrics.json",
        "predictions.jsonl",
        "run.json",
    ]


def test_killed_processes_are_gone_on_with_by_another_number_of_them(tmp_path, loaded):
    examples = load("test", COUNT)
    run(loaded, tmp_path / "one", examples)

    def work():
        original = rows.append

        def append(file, row, written=[]):  # noqa: B006
            original(file, row)
            written.append(row)
            if len(written) == 4 + 3 * ranks.rank():
                os.kill(os.getpid(), signal.SIGKILL)

        rows.append = append
        run(loaded, tmp_path / "run", examples)

    assert together([work] * 2) == [-signal.SIGKILL] * 2
    assert not (tmp_path / "run" / "predictions.jsonl").exists()
    left = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "run").glob("*.jsonl"))]
    assert left == [4, 7]
    assert together([lambda: run(loaded, tmp_path / "run", examples, resume=True)] * 3) == [0] * 3
    assert lines(tmp_path / "run") == lines(tmp_path / "one")
    assert measured(tmp_path / "run") == measured(tmp_path / "one")


def test_more_processes_than_examples(tmp_path, loaded):
    assert together([lambda: run(loaded, tmp_path, load("test", 1))] * 3) == [0] * 3
    assert len(lines(tmp_path)) == 1


def test_a_share_without_a_usable_example(tmp_path, loaded):
    """One image's questions are all broken, and they are all that the second process has."""
    examples = load("test", 8)
    broken = [replace(e, error=f"rows.jsonl row {n}: no answer") for n, e in enumerate(examples[4:])]
    assert together([lambda: run(loaded, tmp_path, [*examples[:4], *broken])] * 2) == [0, 0]
    assert (measured(tmp_path)["examples"], measured(tmp_path)["errors"]) == (4, 4)


def test_the_command_line_keeps_one_folder(tmp_path, model_folder, monkeypatch):
    """Without hydra.run.dir, so that each process would name one of its own; the others print nothing."""
    fixed = [a for a in arguments(model_folder, "unused") if not a.startswith("hydra.run.dir")]
    monkeypatch.chdir(tmp_path)

    def work():
        code, out, err = run_main(monkeypatch, *fixed, "batch_size=3")
        Path(f"out{ranks.rank()}").write_text(out)
        assert code == 0, err

    assert together([work, work]) == [0, 0]
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text())["examples"] == 14
    assert (metrics.parent / "kept.png").exists() and (metrics.parent / ".hydra").exists()
    assert len(list((tmp_path / "runs").rglob(".hydra"))) == 1
    assert "metrics.json" in Path("out0").read_text() and Path("out1").read_text() == ""


def test_what_several_processes_cannot_do_is_said(monkeypatch, tmp_path, model_folder):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run_main(monkeypatch, "-m", *arguments(model_folder, tmp_path), "keep_ratio=0.5,0.25")
    assert code == 1 and "2 processes" in err and len(err.splitlines()) == 1
    with pytest.raises(PrunekitError, match="task=bench"):
        BenchConfig()
    parts = {kind: {"name": name} for kind, name in DEFAULTS.items()}
    rest = {"data": {"name": "mini", "max_new_tokens": 1}, "logger": {}, "sweep": {"objective": {}, "table": {}}}
    config = parse({"task": "layers", **parts, "model": {"name": "mini", "device_map": "auto"}, **rest})
    with pytest.raises(PrunekitError, match="device_map=auto"):
        objects.load(config)


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert models.resolve_device("auto") == torch.device("cuda")
    environment = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert models.resolve_device("auto") == torch.device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert models.resolve_device("auto") == torch.device("cuda:2")


def test_shares_are_whole_images_and_cover_the_data_once(monkeypatch):
    examples = load("test", 50)
    found = []
    for name, value in {"WORLD_SIZE": "3", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for number in range(3):
        monkeypatch.setenv("RANK", str(number))
        walk = Walk(examples, 4, window=5)
        windows = list(walk.windows())
        assert all(len(window) == 5 for window in windows[:-1])
        assert walk.places == {id_number(e.id): place for place, e in enumerate(examples)}
        found.append([e for window in windows for e in window])
    assert sorted(e.id for share in found for e in share) == sorted(e.id for e in examples)
    images = [{e.image_id for e in share} for share in found]
    assert not images[0] & images[1] and not images[1] & images[2] and not images[0] & images[2]


def test_under_torchrun(monkeypatch, tmp_path, model_folder):
    """The command line in two processes of torch's own launcher."""
    given = [*arguments(model_folder, tmp_path / "two"), "batch_size=3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "prunekit", *given]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "one"), "batch_size=3")
    assert code == 0, err
    assert lines(tmp_path / "two") == lines(tmp_path / "one") and len(lines(tmp_path / "one")) == 14
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
