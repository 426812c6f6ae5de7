"""Runs that meet in one folder: unique default folders, one writer at a time, rows with a name, nothing replaced."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

import prunekit
from commands import arguments, run_main
from paths import ROOT
from processes import exit_code, fork, together
from prunekit import ranks
from prunekit.data import load
from prunekit.errors import FolderError, PrunekitError
from prunekit.files import put_between
from prunekit.records import rows
from prunekit.records.lock import LOCK, WRITER, claimed
from prunekit.results.settings import TableSettings
from prunekit.results.sweep import summarise
from prunekit.run.invocation import current
from runs import lines, measured, run

TRAIN = ["task=train", "train.max_steps=1", "train.batch_size=4", "train.log_steps=1", "train.limit=8", "data.limit=7"]
BENCH = ["task=bench", "bench.rounds=1", "bench.new_tokens=0", "bench.eager=false"]
TASKS = {
    "eval": [],
    "resume": ["resume=true"],
    "layers": ["experiment=layer_selection"],
    "train": TRAIN,
    "bench": BENCH,
    "report": ["task=report", "report.runs=/no/such"],
    "study": ["experiment=sparse_finetune"],
    "sweep": ["-m", "keep_ratio=0.5,0.25"],
    "rows": ["experiment=ablation"],
    "search": ["experiment=search"],
}
"""What writes a run folder: each task, and each kind of sweep."""

WAITING = """
import os, time
from dataclasses import dataclass
import prunekit

@prunekit.register("scorer", "waiting")
@dataclass
class Waiting(prunekit.Scorer):
    def score(self, view):
        open("begun", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        return view.visual(view.hidden_states.norm(dim=-1))
"""
"""A scorer that lets a test decide when its run goes on."""


def command(model, folder, *more):
    """A run in a process of its own, without a folder of its own if ``folder`` is None."""
    given = [a for a in arguments(model, folder, *more) if folder or not a.startswith("hydra.run.dir")]
    return [sys.executable, "-m", "prunekit", *given]


def start(words, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def another_writer(folder):
    """Somebody else writes the folder; a thread is as foreign to the lock as another process."""
    begun, go = threading.Event(), threading.Event()

    def write():
        with claimed(folder):
            begun.set()
            go.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join()


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def one_refusal(code, err, *words):
    said = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(said) == 1 and said[0].startswith("prunekit: error: "), err
    for word in words:
        assert word in said[0]


class TestDefaultFolders:
    def test_runs_that_start_together_have_folders_of_their_own(self, tmp_path, model_folder):
        """Three processes at once; each prints the table of its own ratio."""
        ratios = ("0.5", "0.25", "0.1")
        runs = [start(command(model_folder, None, f"keep_ratio={ratio}"), tmp_path) for ratio in ratios]
        said = [process.communicate(timeout=120) for process in runs]
        assert [process.returncode for process in runs] == [0, 0, 0], said
        for ratio, (out, _) in zip(ratios, said, strict=True):
            (folder,) = re.findall(r"^files: (.*) \(metrics", out, re.MULTILINE)
            metrics = json.loads((Path(folder) / "metrics.json").read_text())
            assert metrics["method"]["keep_ratio"] == float(ratio) and metrics["examples"] == 14
        assert len(list(tmp_path.rglob("metrics.json"))) == 3

    @pytest.mark.parametrize("words", [["task=families"], ["-m", "task=families", "seed=0,1"]])
    def test_the_clock_does_not_tell_them_apart(self, monkeypatch, tmp_path, words):
        """All in the same microsecond: runs and sweeps."""
        from hydra.core import utils

        class Stopped(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 1, 2, 3, 4, 5)

        monkeypatch.setattr(utils, "datetime", Stopped)
        monkeypatch.chdir(tmp_path)
        for _ in range(3):
            assert run_main(monkeypatch, *words)[0] == 0
        days = [p for p in (tmp_path / "runs").rglob("2026-01-02") if p.is_dir()]
        assert len([p for day in days for p in day.iterdir()]) == 3

    def test_workers_share_their_sweeps_folder(self, monkeypatch, tmp_path, model_folder):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)  # workers of an earlier test would stand in its folder
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        given = [a for a in arguments(model_folder, "") if not a.startswith("hydra.run.dir")]
        workers = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "keep_ratio=0.5,0.25"]
        code, out, err = run_main(monkeypatch, "-m", *given, *workers)
        assert code == 0 and "2 of 2 jobs finished" in out, err
        (folder,) = {path.parent.parent for path in tmp_path.rglob("metrics.json")}
        assert (folder / "0/metrics.json").exists() and (folder / "1/metrics.json").exists()


class TestOneWriter:
    @pytest.mark.parametrize("task", TASKS)
    def test_a_second_one_is_refused_in_one_line(self, monkeypatch, tmp_path, model_folder, task):
        """Whatever the task: before it writes anything, with who writes the folder and since when."""
        folder = tmp_path / "run"
        given = [a for a in arguments(model_folder, folder) if task not in ("study", "rows") or "limit" not in a]
        given += [f"hydra.sweep.dir={folder}"] if task == "sweep" else []
        if task == "search":
            pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        with another_writer(folder):
            before = contents(folder)
            code, _, err = run_main(monkeypatch, *given, *TASKS[task])
            who = json.loads((folder / WRITER).read_text())
            assert contents(folder) == before
        one_refusal(code, err, str(folder), f"process {os.getpid()} on {socket.gethostname()} since {who['since']}")

    def test_two_processes_and_one_that_is_killed(self, tmp_path, model_folder):
        """The second is refused while the first writes, also to resume; a dead writer is in nobody's way."""
        (tmp_path / "methods").mkdir()
        (tmp_path / "methods" / "waiting.py").write_text(WAITING)
        words = command(model_folder, tmp_path / "run", "scorer=waiting", "batch_size=4")
        first = start(words, tmp_path)
        until((tmp_path / "begun").exists)
        second = start([*words, "resume=true"], tmp_path)
        one_refusal(second.wait(60), second.communicate()[1], f"process {first.pid} on {socket.gethostname()} since 2")
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert (tmp_path / "run" / WRITER).exists(), "what it left behind"
        (tmp_path / "go").touch()
        third = start([*words, "resume=true"], tmp_path)
        assert third.wait(60) == 0, third.communicate()[1]
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["examples"] == 14
        assert not (tmp_path / "run" / WRITER).exists()

    def test_by_the_python_interface_too(self, tmp_path, loaded):
        with another_writer(tmp_path), pytest.raises(FolderError, match=f"process {os.getpid()} on .* since"):
            run(loaded, tmp_path, load("test", 4))
        run(loaded, tmp_path, load("test", 4))

    def test_processes_that_share_a_run_are_one_writer(self, tmp_path, loaded):
        """They are refused together, and none of them waits for the others."""
        said = tmp_path / "said"
        said.mkdir()

        def work():
            try:
                run(loaded, tmp_path / "run", load("test", 4))
            except FolderError as error:
                (said / str(ranks.rank())).write_text(str(error))

        with another_writer(tmp_path / "run"):
            assert together([work, work]) == [0, 0]
        assert sorted(p.name for p in said.iterdir()) == ["0", "1"]
        assert together([work, work]) == [0, 0] and len(lines(tmp_path / "run")) == 4

    def test_processes_of_a_launcher_are_refused_together(self, monkeypatch, tmp_path, model_folder):
        given = arguments(model_folder, tmp_path / "run")

        def work():
            code, _, err = run_main(monkeypatch, *given)
            (tmp_path / f"said{ranks.rank()}").write_text(err)
            raise SystemExit(code)

        with another_writer(tmp_path / "run"):
            assert together([work, work]) == [2, 2]
        for number in (0, 1):
            one_refusal(2, (tmp_path / f"said{number}").read_text(), "is being written by")

    def test_a_job_of_a_sweep_that_somebody_writes(self, monkeypatch, tmp_path, model_folder):
        """As where a sweep's own process was killed and its workers go on: the sweep is refused beforehand."""
        given = [
            "-m",
            *arguments(model_folder, ""),
            f"hydra.sweep.dir={tmp_path}",
            "keep_ratio=0.5,0.25",
            "resume=true",
        ]
        with another_writer(tmp_path / "1"):
            code, _, err = run_main(monkeypatch, *given)
        one_refusal(code, err, str(tmp_path / "1"), "is being written by")
        assert not (tmp_path / "0").exists()

    def test_a_disk_without_locks_is_said(self, monkeypatch, tmp_path):
        import errno

        from prunekit.records import lock

        class NoLock:
            def __init__(self, *_, **__):
                pass

            def acquire(self):
                raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock, "FileLock", NoLock)
        with pytest.warns(UserWarning, match="cannot be locked"), claimed(tmp_path):
            pass

    def test_who_wants_to_wait_comes_after_the_present_writer(self, tmp_path):
        order = []

        def second():
            with claimed(tmp_path, wait=True):
                order.append("second")

        with claimed(tmp_path):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join(0.3)
            order.append("first")
        thread.join(60)
        assert order == ["first", "second"]

    def test_tables_in_one_file_wait_for_each_other(self, tmp_path):
        file = tmp_path / "results.md"
        children = [fork(lambda n=n: [put_between(file, str(k), f"{n}-{k}") for k in range(20)]) for n in range(3)]
        assert [exit_code(child) for child in children] == [0, 0, 0]
        assert file.read_text().count(":begin -->") == 60


class TestRows:
    def test_those_of_another_run_are_never_counted(self, tmp_path, loaded, monkeypatch):
        """A writer that no lock keeps out, on another machine say: its rows are about the same questions."""
        run(loaded, tmp_path / "alone")
        original = rows.append

        def with_others(file, row):
            original(file, {**row, "correct": True, "prediction": "theirs", "run": "of another run"})
            original(file, row)

        monkeypatch.setattr(rows, "append", with_others)
        run(loaded, tmp_path / "shared")
        assert lines(tmp_path / "shared") == lines(tmp_path / "alone")
        assert measured(tmp_path / "shared") == measured(tmp_path / "alone")

    def test_those_of_another_run_are_not_resumed(self, tmp_path, loaded):
        run(loaded, tmp_path)
        whole, path = lines(tmp_path), tmp_path / "predictions.jsonl"
        path.write_text("".join(json.dumps({**row, "run": "of another run"}) + "\n" for row in whole))
        with pytest.warns(UserWarning, match="dropped 36 rows of another run"):
            run(loaded, tmp_path, resume=True)
        assert lines(tmp_path) == whole

    @pytest.mark.parametrize("count", [1, 2])
    def test_fewer_than_were_asked_are_no_result(self, tmp_path, loaded, monkeypatch, count):
        """Rows that get lost on the way: an error in every process, no metrics, and the run can be gone on with."""
        original = rows.gather

        def losing(folder, places, name):
            if ranks.is_first():
                path = rows.own_file(folder)
                path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
            original(folder, places, name)

        def work():
            rows.gather = losing
            with pytest.raises(PrunekitError, match="34 of 36 examples have a row"):
                run(loaded, tmp_path, load("test", 36))

        assert together([work] * count) == [0] * count
        assert not (tmp_path / "metrics.json").exists()
        run(loaded, tmp_path, load("test", 36), resume=True)
        assert measured(tmp_path)["examples"] == 36

    def test_a_folder_that_lost_rows_is_not_finished(self, monkeypatch, tmp_path, model_folder):
        given = arguments(model_folder, tmp_path, "resume=true")
        assert run_main(monkeypatch, *given)[0] == 0
        whole = lines(tmp_path)
        for left in (whole[:10], [*whole[:10], *({**row, "run": "of another run"} for row in whole[10:])]):
            (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
            code, out, err = run_main(monkeypatch, *given)
            assert code == 0 and "finished before" not in out, err
            assert lines(tmp_path) == whole
        assert "finished before" in run_main(monkeypatch, *given)[1]

    def test_those_without_a_name_are_refused(self, monkeypatch, tmp_path, model_folder):
        """A folder of prunekit 0.1 may hold the rows of several runs: nobody can tell."""
        given = arguments(model_folder, tmp_path)
        assert run_main(monkeypatch, *given)[0] == 0
        old = [{key: value for key, value in row.items() if key != "run"} for row in lines(tmp_path)]
        (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
        before = (tmp_path / "predictions.jsonl").read_bytes()
        code, _, err = run_main(monkeypatch, *given, "resume=true")
        assert code == 1 and "do not say which run they are of" in err and len(err.strip().splitlines()) == 1
        assert (tmp_path / "predictions.jsonl").read_bytes() == before
        assert run_main(monkeypatch, *given, "overwrite=true")[0] == 0 and len(lines(tmp_path)) == 14

    @pytest.mark.parametrize("reader", ["table", "report"])
    def test_a_table_of_mixed_rows_is_refused(self, tmp_path, loaded, reader):
        from prunekit.report.task import analyse

        run(loaded, tmp_path / "0", load("test", 8))
        (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [{"folder": "0", "row": "a", "values": {}}]}))
        path = tmp_path / "0" / "predictions.jsonl"
        read = {"table": lambda: summarise(tmp_path, TableSettings()), "report": lambda: analyse(str(tmp_path))}[reader]
        read()
        whole = lines(tmp_path / "0")
        path.write_text("".join(json.dumps({**row, "run": str(n // 4)}) + "\n" for n, row in enumerate(whole)))
        with pytest.raises(PrunekitError, match="rows of 2 runs"):
            read()
        path.write_text("".join(json.dumps(row) + "\n" for row in whole[:-1]))
        with pytest.raises(PrunekitError, match="7 of 8 predictions"):
            read()


class TestSweepFolders:
    SUBDIRS = ("x", "${scorer.name}", "a/../b", "${hydra:job.name}")

    @pytest.mark.parametrize("subdir", SUBDIRS)
    def test_jobs_that_would_share_one(self, monkeypatch, tmp_path, model_folder, subdir):
        given = ["-m", *arguments(model_folder, ""), f"hydra.sweep.dir={tmp_path}", f"hydra.sweep.subdir={subdir}"]
        code, _, err = run_main(monkeypatch, *given, "keep_ratio=0.5,0.25,0.1,0.05")
        one_refusal(code, err, "hydra.sweep.subdir=", "4 of 4 would write", "${hydra.job.num}")
        assert not [p for p in tmp_path.iterdir() if p.name != LOCK]

    @pytest.mark.parametrize("subdir", ["${hydra.job.num}", "k${keep_ratio}", "${hydra.job.override_dirname}"])
    def test_jobs_that_are_told_apart(self, monkeypatch, tmp_path, subdir):
        given = ["-m", "task=families", f"hydra.sweep.dir={tmp_path}", f"hydra.sweep.subdir={subdir}"]
        code, out, err = run_main(monkeypatch, *given, "keep_ratio=0.5,0.25")
        assert code == 0 and "2 of 2 jobs finished" in out, err

    def test_a_search_whose_trials_might_share_one(self, monkeypatch, tmp_path):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        given = ["experiment=search", f"hydra.run.dir={tmp_path}", "hydra.sweep.subdir=x"]
        code, _, err = run_main(monkeypatch, *given)
        one_refusal(code, err, "hydra.sweep.subdir=x", "${hydra.job.num}")


class TestNothingIsReplaced:
    KINDS = ("eval", "layers", "train", "bench")

    @pytest.mark.parametrize("task", KINDS)
    def test_a_finished_run_of_another_configuration(self, monkeypatch, tmp_path, model_folder, task):
        """It stays, with its configuration, until that is asked for; the same one may be run again."""
        more = [*TASKS[task], "data.limit=7"]
        given = arguments(model_folder, tmp_path / "run", *more)
        code, _, err = run_main(monkeypatch, *given)
        assert code == 0, err
        before = contents(tmp_path)
        code, _, err = run_main(monkeypatch, *given, "keep_ratio=0.25")
        one_refusal(code, err, str(tmp_path / "run"), "keep_ratio: None there, 0.25 here", "overwrite=true")
        assert contents(tmp_path) == before
        code, _, err = run_main(monkeypatch, *given, "keep_ratio=0.25", "overwrite=true", "batch_size=5")
        assert code == 0, err
        assert "keep_ratio: 0.25" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
        if task != "train":  # whose checkpoints ask for resume=true in any case
            assert run_main(monkeypatch, *given, "keep_ratio=0.25")[0] == 0

    def test_a_refused_resume_changes_nothing(self, monkeypatch, tmp_path, model_folder):
        """Hydra's record of the run included; another limit may be resumed."""
        given = arguments(model_folder, tmp_path)
        assert run_main(monkeypatch, *given)[0] == 0
        before = contents(tmp_path)
        code, _, err = run_main(monkeypatch, *given, "resume=true", "keep_ratio=0.25", "data.limit=7")
        assert code == 1 and "another configuration (keep_ratio: None there, 0.25 here)" in err
        assert contents(tmp_path) == before
        assert run_main(monkeypatch, *given, "resume=true", "data.limit=21")[0] == 0 and len(lines(tmp_path)) == 21

    def test_nor_by_another_task(self, monkeypatch, tmp_path, model_folder):
        given = arguments(model_folder, tmp_path)
        assert run_main(monkeypatch, *given)[0] == 0
        for words in (["task=bench"], TRAIN, ["task=families"]):
            code, _, err = run_main(monkeypatch, *given, *words)
            one_refusal(code, err, "task: eval there", "overwrite=true")

    @pytest.mark.parametrize(
        "words", [["keep_ratio=0.5,0.25"], ["hydra/sweeper=rows", "sweep.rows={a:['seed=0'],b:['seed=1']}"]]
    )
    def test_nor_by_a_sweep(self, monkeypatch, tmp_path, model_folder, words):
        """All jobs are looked at before the first one runs."""
        given = ["-m", *arguments(model_folder, ""), f"hydra.sweep.dir={tmp_path}", *words]
        assert run_main(monkeypatch, *given)[0] == 0
        before = contents(tmp_path)
        code, _, err = run_main(monkeypatch, *given, "positions=renumber")
        one_refusal(code, err, "positions: None there, renumber here", "overwrite=true")
        assert contents(tmp_path) == before
        for more in ([], ["positions=renumber", "overwrite=true"]):
            code, out, err = run_main(monkeypatch, *given, *more)
            assert code == 0 and "2 of 2 jobs finished" in out, err

    def test_nor_by_the_python_interface(self, tmp_path, loaded):
        examples, other = load("test", 4), prunekit.Pruner(keep_ratio=0.25)
        run(loaded, tmp_path, examples)
        before = contents(tmp_path)
        with pytest.raises(FolderError, match=r"keep_ratio: 0\.5 there, 0\.25 here"):
            run(loaded, tmp_path, examples, other)
        assert contents(tmp_path) == before
        run(loaded, tmp_path, examples)
        run(loaded, tmp_path, examples, other, overwrite=True)
        assert measured(tmp_path)["method"]["keep_ratio"] == 0.25
        (tmp_path / "run.json").unlink()
        with pytest.raises(FolderError, match="no record of what it is of"):
            run(loaded, tmp_path, examples, other)

    @pytest.mark.parametrize(
        ("words", "word"),
        [
            (["resume=true", "overwrite=true"], "choose one of them"),
            (["overwrite=maybe"], "overwrite must be true or false, not 'maybe'"),
            (["resume=1"], "resume must be true or false, not 1"),
        ],
    )
    @pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
    def test_flags_are_checked(self, monkeypatch, tmp_path, model_folder, words, word, sweep):
        given = [*sweep, *arguments(model_folder, tmp_path), f"hydra.sweep.dir={tmp_path}", *words]
        code, _, err = run_main(monkeypatch, *given)
        assert code == 1 and word in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())

    def test_what_a_run_replaces_does_not_pass_for_its_own(self, monkeypatch, tmp_path, model_folder):
        given = arguments(model_folder, tmp_path)
        assert run_main(monkeypatch, *given)[0] == 0
        assert run_main(monkeypatch, *given, *BENCH, "overwrite=true")[0] == 0
        assert not (tmp_path / "metrics.json").exists() and (tmp_path / "bench.json").exists()


def test_the_claim_ends_with_the_run(monkeypatch, tmp_path, model_folder):
    """Also with one that fails."""
    assert run_main(monkeypatch, *arguments(model_folder, tmp_path, "schedule.layers=[99]"))[0] == 1
    with another_writer(tmp_path):
        assert not current().claims.pop_all()._exit_callbacks
