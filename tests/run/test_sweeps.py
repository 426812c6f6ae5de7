"""Sweeps: rows and products, one load and one dense run, resumption, failures, workers, what a sweeper may optimise."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
import time

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import save_file

import prunekit
from commands import arguments, run_main
from paths import ROOT
from prunekit.evaluation import loop as evaluation
from prunekit.evaluation.answers import DenseCache
from prunekit.files import unwritable
from prunekit.records import sweep as sweep_record
from prunekit.records.folder import Job
from prunekit.records.identity import difference, job_identity, run_name, what_matters
from prunekit.registry import source_folder
from prunekit.run import eval as eval_task
from prunekit.run import job, objects
from prunekit.run.rows import expand
from sweeps import json_rows, sweep

TWO = "sweep.rows={near:['schedule=one_shot','schedule.depth=0.5'],chance:['scorer=random','fusion=single','seed=0,1']}"


@pytest.fixture
def counted(monkeypatch):
    """How often a model was loaded and a dense run computed, and what was evaluated; nothing is left of other tests."""
    objects._cached_model.cache_clear()
    objects._cached_batcher.cache_clear()
    objects._examples.clear()
    calls = {"load": 0, "dense": 0, "pruned": 0, "encoded": 0}
    from prunekit import models
    from prunekit.evaluation.batches import Batcher

    load, answer, encode = models.load_model, evaluation.answer_all, Batcher._encode

    def loading(*args, **kwargs):
        calls["load"] += 1
        return load(*args, **kwargs)

    def answering(batcher, examples, pruner, **kwargs):
        calls["dense" if pruner is None else "pruned"] += len(examples)
        return answer(batcher, examples, pruner, **kwargs)

    def encoding(self, made, rows):
        calls["encoded"] += len(rows)
        return encode(self, made, rows)

    monkeypatch.setattr(models, "load_model", loading)
    monkeypatch.setattr(evaluation, "answer_all", answering)
    monkeypatch.setattr(Batcher, "_encode", encoding)
    return calls


class TestRows:
    @staticmethod
    def jobs(name, *words):
        return expand(name, OverridesParser.create().parse_overrides(list(words)))

    def test_a_row_is_the_product_of_its_sweeps(self):
        found = self.jobs("r", "method=a,b", "keep_ratio=0.5", "seed=0,1")
        wanted = [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
        assert [(j.values["method"], j.values["seed"]) for j in found] == wanted
        assert [j.folder for j in found] == [f"r/method_{m}/seed_{s}" for m, s in wanted]
        assert found[1].words == ["method=a", "keep_ratio=0.5", "seed=1"]

    def test_the_later_word_counts(self):
        (job,) = self.jobs("r", "keep_ratio=0.5,0.25", "scorer=random", "keep_ratio=0.1")
        assert set(job.words) == {"keep_ratio=0.1", "scorer=random"} and job.values == {} and job.folder == "r"

    def test_a_name_takes_in_a_swept_value(self):
        found = self.jobs("{method}", "method=a,b", "keep_ratio=0.5,0.1")
        wanted = list(itertools.product("ab", ("0.5", "0.1")))
        assert [(j.row, j.values) for j in found] == [(m, {"keep_ratio": k}) for m, k in wanted]
        assert [j.folder for j in found] == [f"{m}/keep_ratio_{k}" for m, k in wanted]
        assert [(j.row, j.folder) for j in self.jobs("{method} {k}", "method=a")] == [("a {k}", "a_k")]

    def test_folders_hold_no_odd_characters(self):
        (job, _) = self.jobs("cut 1/4", "schedule.layers=[1,2],[2,3]")
        assert job.folder == "cut_1_4/schedule.layers_1_2"


def test_rows_share_model_images_and_dense_run_and_resume(monkeypatch, tmp_path, model_folder, counted):
    folder = tmp_path / "sweep"
    command = sweep(model_folder, folder, TWO, "resume=true")
    code, out, err = run_main(monkeypatch, *command)
    assert code == 0, err
    assert "3 of 3 jobs finished" in out
    assert counted["load"] == 1 and counted["dense"] == 14 and counted["pruned"] == 3 * 14
    images = {row["image_id"] for row in json_rows(folder / "near" / "predictions.jsonl")}
    assert counted["encoded"] == len(images)
    plan = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [(j["row"], j["folder"]) for j in plan] == [
        ("near", "near"), ("chance", "chance/seed_0"), ("chance", "chance/seed_1"),
    ]  # fmt: skip
    first, second = (json_rows(folder / f"chance/seed_{s}" / "predictions.jsonl") for s in (0, 1))
    assert [r["kept"] for r in first] != [r["kept"] for r in second]
    for planned in plan:
        assert json.loads((folder / planned["folder"] / "metrics.json").read_text())["examples"] == 14
        overrides = yaml.safe_load((folder / planned["folder"] / ".hydra" / "overrides.yaml").read_text())
        assert set(planned["overrides"]) <= set(overrides)

    # Killed in the middle of the second job: the first stands, the second is gone on with, the third is done.
    path = folder / "chance" / "seed_0" / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    (path.parent / "metrics.json").unlink()
    record = json.loads((path.parent / "job.json").read_text())
    (path.parent / "job.json").write_text(json.dumps({**record, "finished": False}))
    monkeypatch.setattr(eval_task, "load", lambda config, load=eval_task.load: load(config))
    before = (folder / "near" / "metrics.json").stat().st_mtime_ns
    counted.update(pruned=0, dense=0)
    code, out, err = run_main(monkeypatch, *command)
    assert code == 0, err
    assert out.count("finished before") == 2 and counted == {**counted, "pruned": 9, "dense": 0}
    assert (folder / "near" / "metrics.json").stat().st_mtime_ns == before
    assert sorted(r["id"] for r in json_rows(path)) == sorted(r["id"] for r in first)

    code, _, err = run_main(monkeypatch, *command, "keep_ratio=0.25")
    assert code == 1 and err.count("another configuration (keep_ratio: None there, 0.25 here)") >= 3


def test_the_rows_of_the_docs(monkeypatch, tmp_path, model_folder):
    """A preset in a folder of the user's own; the command line has the last word."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    preset = text.replace("[scorer=mine, scorer.alpha=3]", "[scorer=visual]")
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text(preset)
    base = ["--config-dir", str(tmp_path / "my"), *arguments(model_folder, tmp_path / "run", "experiment=mine")]
    code, out, err = run_main(monkeypatch, *base, "sweep.only=[mine,fastv]", "keep_ratio=0.25,0.1")
    assert code == 0, err
    assert "4 of 4 jobs finished" in out and "### Keep 0.1" in out and "| mine |" in out and "| fastv |" in out
    assert (tmp_path / "run" / "mine" / "keep_ratio_0.25" / "metrics.json").exists()


def test_a_killed_job_has_said_so_beforehand(monkeypatch, tmp_path, model_folder):
    """Interrupted as by Ctrl-C: nothing goes on, the job's folder says that it did not come to its end."""
    monkeypatch.setattr(evaluation.Loop, "_window", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = run_main(monkeypatch, *sweep(model_folder, tmp_path / "sweep", TWO))
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert "did not come to its end" in (tmp_path / "sweep" / "near" / "error.txt").read_text()
    assert not (tmp_path / "sweep" / "near" / "metrics.json").exists()


def test_a_failed_row_is_reported_and_the_others_go_on(monkeypatch, tmp_path, model_folder):
    folder = tmp_path / "sweep"
    rows = "sweep.rows={deep:['schedule=one_shot','schedule.layer=99'],near:['schedule=one_shot']}"
    code, out, err = run_main(monkeypatch, *sweep(model_folder, folder, rows))
    assert code == 1 and "1 of 2 jobs finished" in out
    assert err.strip().splitlines()[-1].startswith("failed: job deep: ") and "layer 99" in err
    assert (folder / "near" / "metrics.json").exists() and not (folder / "near" / "error.txt").exists()


def test_who_wants_the_same_dense_answers_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    from prunekit.data import load

    examples, seen = load("test", 2), []
    entered = threading.Event()

    def second():
        other = DenseCache("model", 8)
        entered.wait()
        with other.computing(examples):
            seen.append(other.get(examples[0]))

    def elsewhere():
        with DenseCache("model", 8).computing(examples[:1]):
            seen.append("not kept waiting")

    threads = [threading.Thread(target=t) for t in (second, elsewhere)]
    cache = DenseCache("model", 8)
    with cache.computing(examples):
        for thread in threads:
            thread.start()
        entered.set()
        threads[1].join(10)
        time.sleep(0.2)
        assert seen == ["not kept waiting"]
        cache.add(examples[0], "red")
    threads[0].join(10)
    assert seen == ["not kept waiting", "red"]


class TestObjective:
    def test_accuracy_and_the_flops_limit(self, monkeypatch, tmp_path, model_folder):
        """What a sweeper gets from a job: the accuracy, or the excess over the limit as a negative number."""

        returned = []
        dispatch = job.dispatch

        def noted(config, folder):
            returned.append(dispatch(config, folder))
            return returned[-1]

        monkeypatch.setattr(job, "dispatch", noted)
        words = ["schedule=one_shot", "schedule.layer=1,3", "keep_ratio=0.5", "sweep.objective.flops_limit=0.7"]
        code, out, err = run_main(monkeypatch, *sweep(model_folder, tmp_path / "sweep", *words))
        assert code == 0, err
        metrics = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())
        assert returned[0] == metrics["accuracy"]["mean"]
        # Layer 3 of 6: three layers dense, three with half of the 144 tokens, of prompts like the first example's.
        assert -0.2 < returned[1] < 0 and "not run: " in out
        assert not (tmp_path / "sweep" / "1" / "metrics.json").exists()
        code, out, err = run_main(
            monkeypatch, *sweep(model_folder, tmp_path / "all", *words[:3], "sweep.objective.flops_limit=1")
        )
        flops = json.loads((tmp_path / "all" / "1" / "metrics.json").read_text())["flops_ratio"]
        assert 0.7 - returned[1] == pytest.approx(flops, abs=0.02)

    def test_an_optuna_search_finds_what_the_limit_allows(self, monkeypatch, tmp_path, model_folder):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        folder = tmp_path / "search"
        words = ["experiment=search", "hydra.sweeper.n_trials=4", f"hydra.run.dir={folder}"]
        given = [a for a in arguments(model_folder, folder) if not a.startswith("hydra.run.dir")]
        code, out, err = run_main(monkeypatch, *given, *words)
        assert code == 0, err
        best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
        assert set(best["best_params"]) == {"schedule.depths", "keep_ratio"} and "4 of 4 jobs finished" in out
        costs = [json.loads(p.read_text())["flops_ratio"] for p in folder.glob("*/metrics.json")]
        assert all(cost < 0.72 for cost in costs) and len(costs) + out.count("not run: ") == 4
        code, out, err = run_main(
            monkeypatch, *given, *words, "resume=true"
        )  # the sampler's seed: the same trials again
        assert code == 0 and out.count("finished before") == len(costs), err
        assert yaml.safe_load((folder / "optimization_results.yaml").read_text()) == best


CONFIG = {"keep_ratio": 0.5, "model": {"name": "mini"}, "resume": True, "batch_size": 4, "data": {"limit": None}}


class TestJobs:
    def test_what_matters_to_a_run(self):
        same = {**CONFIG, "resume": False, "batch_size": 8}
        assert job_identity(CONFIG) == job_identity(same)
        assert difference(job_identity(CONFIG), job_identity({**CONFIG, "keep_ratio": 0.25})) == (
            "keep_ratio: 0.5 there, 0.25 here"
        )
        assert "data.limit" in difference(job_identity(CONFIG), job_identity({**CONFIG, "data": {"limit": 3}}))

    def test_parts_of_another_task_do_not_matter(self):
        config = {"seed": 0, "train": {"max_steps": 1}, "bench": {"rounds": 1}, "sweep": {}, "study": None}
        assert what_matters(config, "eval") == {"seed": 0}
        assert what_matters(config, "train") == {"seed": 0, "train": {"max_steps": 1}}
        assert what_matters(config, "bench") == {"seed": 0, "bench": {"rounds": 1}}

    def test_several_differences_in_words(self):
        there = {"a": 1, "b": {"c": 2, "d": 3}, "model": "0f", "z": [1]}
        assert difference(there, {**there}) is None
        assert difference(there, {**there, "b": {"c": 2}}) == "b.d: 3 there, None here"
        assert difference(there, {**there, "model": "1e"}) == "another model, or other weights or dtype of it"
        two = {**there, "a": 2, "model": "1e", "z": [2]}
        assert difference(there, two) == "a: 1 there, 2 here, z: [1] there, [2] here"
        assert difference({str(n): n for n in range(9)}, {}).endswith("2: 2 there, None here, and 6 more")

    def test_a_data_file_counts_by_its_content(self, tmp_path):
        file = tmp_path / "q.jsonl"
        file.write_text("{}")
        named = {**CONFIG, "data": {"path": str(file), "limit": None}}
        before = job_identity(named)
        file.write_text("[]")
        assert "data.content" in difference(before, job_identity(named))

    def test_a_run_with_rows_in_error_is_not_finished(self, tmp_path):
        job = Job(tmp_path, job_identity(CONFIG))
        job.write(finished=True)
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "predictions.jsonl").write_text(json.dumps({"id": "1", "run": run_name({})}) + "\n")
        for metrics, done in (({"examples": 1, "errors": 0}, True), ({"examples": 0, "errors": 1}, False), ({}, False)):
            (tmp_path / "metrics.json").write_text(json.dumps(metrics))
            assert (job.finished() is not None) == done

    def test_the_model_counts_by_its_content(self, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"one")
        named = {**CONFIG, "model": {"name": str(folder)}}
        before = job_identity(named)
        (folder / "model.safetensors").write_bytes(b"two")
        assert difference(before, job_identity(named)).startswith("model.content: ")

    def test_a_method_counts_by_the_content_of_its_file(self, tmp_path):
        parts = prunekit.method("fastv").components.values()
        ((name, digest),) = job_identity(CONFIG, parts)["files"].items()
        assert name == "fastv.py" and job_identity(CONFIG, prunekit.Pruner().components.values())["files"] == {}
        assert digest == hashlib.sha256((source_folder("methods") / name).read_bytes()).hexdigest()[:16]

    def test_weights_count_by_their_content(self, tmp_path):
        found = []
        for value in (1.0, 2.0):
            save_file({"weights": torch.full((6,), value)}, tmp_path / "w.safetensors")
            fusion = prunekit.create("fusion", "learned", weights=str(tmp_path / "w.safetensors"))
            found.append(job_identity(CONFIG, [fusion]))
        assert difference(*found).startswith("files.w.safetensors: ")

    def test_finished_needs_every_line(self, tmp_path):
        job = Job(tmp_path, {"a": 1})
        assert job.finished() is None
        job.write(finished=True)
        (tmp_path / "metrics.json").write_text('{"examples": 2}')
        (tmp_path / "run.json").write_text("{}")
        one, two = (json.dumps({"id": name, "run": run_name({})}) + "\n" for name in "12")
        for lines in (one, one + '{"id"', one + two.replace(run_name({}), "of another run"), '{"id": "1"}\n' * 2):
            (tmp_path / "predictions.jsonl").write_text(lines)
            assert job.finished() is None
        (tmp_path / "predictions.jsonl").write_text(one + two)
        assert job.finished() == {"examples": 2}
        (tmp_path / "metrics.json").write_text('{"examples": ')
        assert job.finished() is None
        with pytest.raises(ValueError, match=r"another configuration \(a: 1 there, 2 here\)"):
            Job(tmp_path, {"a": 2}).finished()

    def test_unwritable(self, tmp_path):
        assert unwritable(tmp_path / "new" / "file.md") is None
        assert unwritable(tmp_path) == "it is a folder"
        (tmp_path / "file").write_text("")
        assert "no folder" in unwritable(tmp_path / "file" / "x.md")


BAD = [
    (["sweep.objective.flops_limit=2"], "sweep.objective.flops_limit"),
    (["eval.evidence=others"], "Did you mean 'other'"),
    (["eval.evidence=other", "schedule=input", "scorer=cls"], "'input'"),
]


@pytest.mark.parametrize(("bad", "word"), BAD, ids=[" ".join(b) for b, _ in BAD])
def test_bad_input_ends_in_one_clear_line(monkeypatch, tmp_path, model_folder, bad, word):
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path, *bad))
    assert code == 1 and word in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "rows", ["sweep.rows={a:random}", "sweep.rows={a b:['seed=0'],a_b:['seed=1']}", "sweep.rows=3", "sweep.rows={}"]
)
def test_bad_rows_end_in_one_clear_line(monkeypatch, tmp_path, model_folder, rows):
    code, _, err = run_main(monkeypatch, *sweep(model_folder, tmp_path, rows))
    assert code == 1 and "sweep.rows" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "word", ["sweep.skip=3", "sweep.only=[near,neer]", "sweep.skip=[neer]", "sweep.table.labels=a"]
)
def test_bad_names_of_rows_end_in_one_clear_line(monkeypatch, tmp_path, model_folder, word):
    code, _, err = run_main(monkeypatch, *sweep(model_folder, tmp_path, TWO, word))
    assert code == 1 and word.partition("=")[0] in err and len(err.strip().splitlines()) == 1


def test_rows_without_their_sweeper(monkeypatch, tmp_path, model_folder):
    words = [w for w in sweep(model_folder, tmp_path, TWO) if w != "hydra/sweeper=rows"]
    code, _, err = run_main(monkeypatch, *words)
    assert code == 1 and "hydra/sweeper=rows" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["-m", "keep_ratio=0.5,0.25"], ["experiment=ablation"]])
def test_a_sweep_is_not_shared_by_processes(monkeypatch, tmp_path, words):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run_main(monkeypatch, *words, f"hydra.sweep.dir={tmp_path}")
    assert code == 1 and "2 processes share one run" in err and len(err.strip().splitlines()) == 1


def test_presets_of_rows_are_not_swept_together(monkeypatch, tmp_path, model_folder):
    code, _, err = run_main(monkeypatch, *sweep(model_folder, tmp_path, "experiment=layer_selection,ablation"))
    assert code == 1 and "experiment=ablation is a sweep of its own" in err and len(err.strip().splitlines()) == 1


def test_a_sweep_whose_worker_dies_is_summed_up(monkeypatch, tmp_path, model_folder):
    """As joblib raises when a worker is killed: the launcher's error ends the sweep, what is missing is named."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    folder, launch = tmp_path / "sweep", BasicLauncher.launch

    def dying(self, job_overrides, initial_job_idx):
        launch(self, job_overrides[:1], initial_job_idx)
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr(BasicLauncher, "launch", dying)
    code, out, err = run_main(monkeypatch, *sweep(model_folder, folder, TWO))
    assert code == 1 and "1 of 3 jobs finished" in out and "Traceback" not in err
    assert "failed: job chance/seed_1: was not begun" in err and "a worker was killed" in err.splitlines()[-1]


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, model_folder, key):
    (tmp_path / "file").write_text("mine")
    given = [a for a in arguments(model_folder, tmp_path) if not a.startswith("hydra.run.dir")]
    many = ["-m", "keep_ratio=0.5,0.25"] if "sweep" in key else []
    code, _, err = run_main(monkeypatch, *many, *given, f"{key}={tmp_path / 'file' / 'run'}")
    assert code == 1 and f"{tmp_path / 'file'}" in err and len(err.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def takes_keep_ratio(name):
    try:
        prunekit.method(name, keep_ratio=0.5)
    except prunekit.PrunekitError:
        return False
    return True


def test_the_table_of_methods_sweeps_those_that_work_on_images(monkeypatch, tmp_path):
    """Each but those that compare the frames of a video, and those that keep no token in the end."""
    monkeypatch.setattr(job, "dispatch", lambda *_: 0.0)
    code, _, err = run_main(monkeypatch, "experiment=methods", f"hydra.run.dir={tmp_path}", "keep_ratio=0.5")
    assert code in (0, 1), err
    planned = {entry["values"].get("method") or entry["row"] for entry in sweep_record.planned(tmp_path)}
    components = {name: prunekit.method(name).components.values() for name in prunekit.methods()}
    films = {name for name, parts in components.items() if any(getattr(p, "least_frames", 1) > 1 for p in parts)}
    empty = {name for name in components if not takes_keep_ratio(name)}
    assert {"evs", "frames"} < films and {"vtw", "vtw_fitted", "todre"} <= empty
    assert planned == set(components) - films - empty
