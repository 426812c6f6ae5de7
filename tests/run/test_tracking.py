"""Weights & Biases: what an offline run wrote, read back; no credential, a dead network, a sweep's command."""

from __future__ import annotations

import json
import socket
import sys
import time

import pytest
import yaml
from PIL import Image

from commands import arguments, run_main
from fabricated import make_run
from offline_wandb import OfflineRun
from paths import ROOT
from prunekit.errors import PrunekitError
from prunekit.run import tracking
from prunekit.run.tracking import log_report, log_run, run_id


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No account: neither in the environment nor in a file of the user's."""
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))


def rows(count):
    texts = {"task": "colour", "question": "Which?", "answers": ["red", "crimson"], "prediction": "red"}
    shared = {**texts, "dense_prediction": "blue", "correct": True, "dense_correct": False, "kept": [1, 2, 3]}
    return [({**shared, "id": f"q{i}"}, Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(count)]


def log(folder, mode="offline", **more):
    metrics = {"accuracy": {"mean": 0.5}, "accuracy_ci": {"mean": [0.4, 0.6]}, "flops_ratio": 0.7, "schema": 1}
    folder.mkdir(exist_ok=True)
    more = {"tags": ["a", "b"], **more}
    return log_run(folder, mode, config={"keep_ratio": 0.5}, metrics=metrics, group="sweep/1", **more)


def test_a_command_line_run_reads_back(monkeypatch, tmp_path, model_folder):
    """Config, group, tags, the scalars of metrics.json in the summary, and a table with a picture for each example."""
    fixed = [a for a in arguments(model_folder, tmp_path / "unused") if not a.startswith(("logger", "hydra"))]
    words = [f"hydra.sweep.dir={tmp_path}/sweeps/one", "logger.mode=auto", "scorer=visual"]
    code, out, err = run_main(monkeypatch, "-m", *fixed, *words)
    assert code == 0, err
    folder = tmp_path / "sweeps/one/0"
    assert f"to upload: wandb sync {folder}/wandb/offline-run-" in out
    found, metrics = OfflineRun(folder), json.loads((folder / "metrics.json").read_text())
    assert (found.run.project, found.run.job_type, found.run.run_group) == ("prunekit", "eval", "sweeps/one")
    assert {"scorer=visual", "fusion=multi", "schedule=progressive", "model=hf", "data=mini"} <= set(found.run.tags)
    assert found.config["data"]["limit"] == 14 and found.config["scorer"]["name"] == "visual"
    for key in ("flops_ratio", "flops_ratio_with_vision", "kv_ratio", "prefill_ratio"):
        assert found.summary[key] == pytest.approx(metrics[key])
    for task, value in metrics["accuracy"].items():
        assert found.summary[f"accuracy/{task}"] == pytest.approx(value)
    table = json.loads(found.file(found.history["examples"]).read_text())
    assert table["columns"] == list(tracking.COLUMNS) and len(table["data"]) == 14
    answers = {
        json.loads(line)["id"]: json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()
    }
    for row in table["data"]:
        assert row[5] == answers[row[0]]["prediction"] and row[8] == len(answers[row[0]]["kept"])
    assert {p.parent.parent.parent for p in found.staged.values()} == {folder / "wandb"}  # not in the user's home
    pictured = json.loads(found.staged["examples.table.json"].read_text())["data"]
    assert len(pictured) == 14
    for row in pictured:
        assert Image.open(found.staged[row[9]["path"]]).size == (288, 384)


def test_the_table_is_capped_and_the_record_is_resumed(tmp_path):
    log(tmp_path / "run", examples=rows(40))
    found = OfflineRun(tmp_path / "run")
    table = json.loads(found.file(found.history["examples"]).read_text())
    assert [row[0] for row in table["data"]] == [f"q{i}" for i in range(tracking.PICTURES)]
    assert found.run.run_id == run_id(tmp_path / "run", {"keep_ratio": 0.5})
    assert run_id(tmp_path / "run", {"keep_ratio": 0.5, "resume": True}) == found.run.run_id
    assert run_id(tmp_path / "run", {"keep_ratio": 0.25}) != found.run.run_id != run_id(tmp_path, {"keep_ratio": 0.5})


def test_a_failure_while_logging_costs_no_run(monkeypatch, tmp_path):
    import wandb

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Table, "add_data", full)
    line = log(tmp_path / "run", examples=rows(2), tags=["x" * 70])
    assert line.startswith("W&B: logging stopped, the local files are whole (OSError") and "\n" not in line


def test_a_trainings_history_is_logged_by_step(tmp_path):
    log(tmp_path / "run", history=[{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.5}], job_type="train")
    found = OfflineRun(tmp_path / "run")
    steps = [(step["_step"], step["train/loss"]) for step in found.steps if "train/loss" in step]
    assert steps == [(5, 2.0), (10, 1.5)] and found.run.job_type == "train"


def test_a_report_logs_its_table_and_plots(monkeypatch, tmp_path):
    from prunekit.report.task import report
    from prunekit.results import compare

    monkeypatch.setattr(compare, "RESAMPLES", 200)
    make_run(tmp_path / "runs/0", "fastv", 0.7)
    report(str(tmp_path / "runs"), tmp_path / "out")
    assert "to upload: wandb sync" in log_report(tmp_path / "out", "offline", config={"runs": "runs"})
    found = OfflineRun(tmp_path / "out")
    assert found.run.job_type == "report"
    table = json.loads(found.file(found.history["table"]).read_text())
    assert [row[0] for row in table["data"]] == ["dense", "fastv"]
    for name in ("pareto", "layers", "overlap", "kept"):
        assert found.file(found.history[name]).read_bytes() == (tmp_path / f"out/{name}.png").read_bytes()


@pytest.mark.parametrize(("mode", "reason"), [("auto", "offline;"), ("online", "(no credential)")])
def test_without_a_credential_a_run_stays_here(tmp_path, mode, reason):
    line = log(tmp_path / "run", mode)
    assert reason in line and "wandb sync" in line and OfflineRun(tmp_path / "run").summary["flops_ratio"] == 0.7


def test_disabled_writes_nothing(monkeypatch, tmp_path):
    assert log(tmp_path / "run", "disabled") == "W&B: disabled"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "WANDB_MODE" in log(tmp_path / "run", "auto")
    assert not (tmp_path / "run/wandb").exists()
    with pytest.raises(PrunekitError, match="loud"):
        log(tmp_path / "run", "loud")


def test_a_dead_network_turns_into_offline(monkeypatch, tmp_path):
    """A server that takes connections and never answers: no hang, one line that says how to sync, nothing lost."""
    import wandb

    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 3)
    monkeypatch.setattr(tracking, "_unreachable", set())
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        line = log(tmp_path / "run", "auto")
        assert time.monotonic() - start < 60
        assert "the server did not answer before" in log(tmp_path / "next", "auto")  # a sweep waits once
    wandb.teardown()
    assert "going online failed" in line and "wandb sync" in line and "\n" not in line
    assert OfflineRun(tmp_path / "run").summary["accuracy/mean"] == 0.5


def sweep():
    return yaml.safe_load((ROOT / "docs" / "wandb-sweep.yaml").read_text())


def test_the_sweep_file_fits_wandbs_schema():
    """What W&B's schema of sweeps asks of this file."""
    assert sweep()["method"] in ("grid", "random", "bayes")
    assert set(sweep()) <= {"program", "command", "method", "metric", "parameters", "name", "project"}
    assert all(list(options) == ["values"] and len(options["values"]) > 1 for options in sweep()["parameters"].values())
    assert sweep()["metric"]["goal"] in ("maximize", "minimize")


def test_the_command_of_the_sweep_runs(monkeypatch, tmp_path, model_folder):
    """As W&B's agent fills it in, with the last value of each option, and under the id that the agent gives."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    chosen = {name: {"value": options["values"][-1]} for name, options in sweep()["parameters"].items()}
    filled = create_sweep_command_args({"args": chosen})
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${program}": [sweep()["program"]]}
    macros["${args_no_hyphens}"] = filled["args_no_hyphens"]
    command = [part for word in create_sweep_command(sweep()["command"]) for part in macros.get(word, [word])]
    assert command[:4] == ["/usr/bin/env", sys.executable, "-m", "prunekit"]
    assert command[4:] == ["scorer=random", "fusion=multi", "schedule=progressive", "keep_ratio=0.25"]
    monkeypatch.setenv("WANDB_RUN_ID", "fromtheagent")
    given = [a for a in arguments(model_folder, tmp_path / "run") if not a.startswith("logger")]
    code, _, err = run_main(monkeypatch, *given, *command[4:])
    assert code == 0, err
    found = OfflineRun(tmp_path / "run")
    assert found.run.run_id == "fromtheagent" and sweep()["metric"]["name"] in found.summary
