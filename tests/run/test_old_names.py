"""Options under the names of version 0.1: on the command line, in a user's experiment file, in older run folders."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from commands import arguments, run_main
from prunekit.records.old_names import NEW_NAMES, modern, modern_word
from prunekit.run.words import prepared
from sweeps import sweep

WORDS = {
    "evidence=other": "eval.evidence=other",
    "shape=small": "bench.shape=small",
    "runs=runs/sweeps": "report.runs=runs/sweeps",
    "+rows.late=['evidence=other']": "+sweep.rows.late=['evidence=other']",
    "~rows.late": "~sweep.rows.late",
    "table.rows=[a]": "sweep.only=[a]",
    "table.file=null": "sweep.table.file=null",
    "objective.flops_limit=0.5": "sweep.objective.flops_limit=0.5",
    "study.picture=null": "sweep.table.picture=null",
    "study.keep=[0.5]": "study.keep=[0.5]",
    "scorer.rows=last": "scorer.rows=last",
    "rows_of=1": "rows_of=1",
}


def test_words_of_the_command_line():
    assert {word: modern_word(word) for word in WORDS} == WORDS
    assert prepared([*list(WORDS)[:4], "-m"]) == ["-m", *list(WORDS.values())[:4]]
    assert all(modern_word(new) == new for new in NEW_NAMES.values())


def test_configurations():
    old = {"seed": 1, "evidence": "own", "rows": {"a": []}, "table": {"rows": ["a"], "name": "x"}, "study": None}
    sweep_ = {"rows": {"a": []}, "only": ["a"], "table": {"name": "x"}}
    assert modern(old) == {"seed": 1, "study": None, "eval": {"evidence": "own"}, "sweep": sweep_}
    assert old["evidence"] == "own" and "eval" not in old  # a copy
    assert modern(modern(old)) == modern(old)
    assert modern({"bench": {"rounds": 3}, "shape": "small"}) == {"bench": {"rounds": 3, "shape": "small"}}


def test_help_prints_an_option_at_its_new_place_only(monkeypatch):
    code, out, _ = run_main(monkeypatch, "--help")
    names = re.findall(r"^([\w.]+): ", out.partition("== Config ==")[2], re.MULTILINE)
    assert code == 0 and len(names) == len(set(names))
    assert {"eval.evidence", "bench.shape", "report.runs", "sweep.rows", "sweep.table.file"} <= set(names)
    assert not any(modern_word(name) != name for name in names)


def test_an_experiment_file_of_the_user(monkeypatch, tmp_path, model_folder):
    """It sets old names; the command line has the last word, under old names and new."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /hydra/sweeper: rows}]\n"
        "rows:\n  a: [scorer=random, fusion=single]\n  b: [evidence=other, data.limit=28]\n  c: [seed=7]\n"
        "table: {name: mine, reference: a, rows: [a, b], tasks: false}\n"
        "hydra: {mode: MULTIRUN, sweep: {dir: '${hydra.run.dir}'}, sweeper: {params: {evidence: own}}}\n"
    )
    words = [a for a in arguments(model_folder, tmp_path / "run") if not a.startswith("data.limit")]
    words = ["--config-dir", str(tmp_path / "conf"), "experiment=mine", *words, "table.reference=b"]
    code, out, err = run_main(monkeypatch, *words)
    assert code == 0 and "2 of 2 jobs finished" in out, err
    assert "| | accuracy |" not in out and "against b" in out and "accuracy by task" not in out
    recorded = yaml.safe_load((tmp_path / "run" / "b" / ".hydra" / "config.yaml").read_text())
    assert recorded["eval"]["evidence"] == "other"
    assert json.loads((tmp_path / "run" / "b" / "run.json").read_text())["evidence"] == "other"
    assert "evidence" not in json.loads((tmp_path / "run" / "a" / "run.json").read_text())


def aged(folder):
    """Write a run folder's records as version 0.1 did."""

    def back(settings):
        settings = dict(settings)
        if (groups := settings.pop("eval", None)) is not None:
            settings["evidence"] = groups["evidence"]
        if (groups := settings.pop("sweep", None)) is not None:
            table = groups["table"] | {"rows": groups["only"]}
            settings |= {"rows": groups["rows"], "objective": groups["objective"], "table": table, "study": None}
        if "bench" in settings:
            settings["shape"] = settings["bench"].pop("shape")
            settings["runs"] = settings["report"].pop("runs")
        return settings

    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**job, "identity": back(job["identity"])}))
    config = folder / ".hydra" / "config.yaml"
    config.write_text(yaml.safe_dump(back(yaml.safe_load(config.read_text()))))
    assert yaml.safe_load(config.read_text())["evidence"] == job["identity"]["eval"]["evidence"]


class TestFoldersOfBefore:
    @pytest.fixture
    def folder(self, monkeypatch, tmp_path, model_folder):
        code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "run"))
        assert code == 0, err
        aged(tmp_path / "run")
        return tmp_path / "run"

    def test_a_finished_run_is_known_again(self, monkeypatch, folder, model_folder):
        for name in ("evidence", "eval.evidence"):
            code, out, err = run_main(monkeypatch, *arguments(model_folder, folder, "resume=true", f"{name}=own"))
            assert code == 0 and "finished before" in out, err

    def test_an_unfinished_one_goes_on(self, monkeypatch, folder, model_folder):
        rows = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
        (folder / "predictions.jsonl").write_text("".join(rows[:5]))
        (folder / "metrics.json").unlink()
        code, _, err = run_main(monkeypatch, *arguments(model_folder, folder, "resume=true"))
        assert code == 0, err
        again = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
        assert again[:5] == rows[:5] and len(again) == len(rows)

    def test_another_one_is_refused_in_a_line_that_says_what_differs(self, monkeypatch, folder, model_folder):
        code, _, err = run_main(monkeypatch, *arguments(model_folder, folder, "resume=true", "seed=3"))
        assert code == 1 and "another configuration (seed: 0 there, 3 here)" in err and len(err.splitlines()) == 1
        code, _, err = run_main(monkeypatch, *arguments(model_folder, folder, "data.limit=28", "evidence=other"))
        assert code == 2 and "eval.evidence: own there, other here" in err and len(err.splitlines()) == 1

    def test_without_resume_it_is_replaced_by_its_equal_alone(self, monkeypatch, folder, model_folder):
        code, _, err = run_main(monkeypatch, *arguments(model_folder, folder))
        assert code == 0, err


def test_rows_on_the_command_line(monkeypatch, tmp_path, model_folder):
    rows = "rows={near:['schedule=one_shot'],chance:['scorer=random','fusion=single']}"
    words = sweep(model_folder, tmp_path, rows.replace("rows", "sweep.rows"), "table.name=t", "table.rows=[near]")
    code, out, err = run_main(monkeypatch, *[word.replace("sweep.rows", "rows") for word in words])
    assert code == 0 and "1 of 1 jobs finished" in out and (tmp_path / "results.md").exists(), err
