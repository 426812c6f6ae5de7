"""Runs that end early, and are gone on with: nothing lost, nothing doubled, the same metrics."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest

import prunekit
from commands import arguments, interrupted_after, run_main
from processes import exit_code, fork
from prunekit.data import load
from prunekit.data.pictures import Picture
from prunekit.data.source import Examples
from prunekit.errors import PrunekitError
from prunekit.records import rows
from runs import COUNT, lines, measured, run


def test_runs_killed_at_random_moments_lose_and_double_nothing(tmp_path, loaded, monkeypatch):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    rng, kills, codes = random.Random(seed), 0, []
    started = time.monotonic()
    run(loaded, tmp_path / "whole")
    usual = time.monotonic() - started
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "other"))  # dense answers are made again, and killed as well
    while not codes or codes[-1] != 0:
        child = fork(lambda: run(loaded, tmp_path / "killed", resume=True))
        time.sleep(rng.uniform(0.1, 0.5 + 0.2 * len(codes)) * usual)  # in the end it must get through
        os.kill(child, signal.SIGKILL)
        codes.append(exit_code(child))
        kills += codes[-1] == -signal.SIGKILL
        assert codes[-1] in (0, -signal.SIGKILL) and len(codes) < 100
    assert kills > 0
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")


def test_a_run_killed_within_a_line_goes_on_behind_the_last_whole_one(tmp_path, loaded, monkeypatch):
    run(loaded, tmp_path / "whole")

    def die_in_the_middle(file, row, written=[]):  # noqa: B006  (counts the calls of the child)
        line = json.dumps(row).encode()
        written.append(row)
        if len(written) == 11:
            file.write(line[: len(line) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(line + b"\n")
        file.flush()

    def killed():
        rows.append = die_in_the_middle
        run(loaded, tmp_path / "killed")

    assert exit_code(fork(killed)) == -signal.SIGKILL
    left = (tmp_path / "killed" / "predictions.jsonl").read_bytes().splitlines()
    assert len(left) == 11 and not left[-1].endswith(b"}")
    first = [json.loads(line) for line in left[:-1]]
    (tmp_path / "killed" / "predictions.jsonl").write_bytes(
        b"".join(json.dumps({**row, "question": "from before"}).encode() + b"\n" for row in first) + left[-1]
    )
    with pytest.warns(UserWarning, match="dropped 1 broken line of"):
        run(loaded, tmp_path / "killed", resume=True)
    again = lines(tmp_path / "killed")
    assert [row["id"] for row in again] == [e.id for e in load("test", COUNT)]
    assert sum(row["question"] == "from before" for row in again) == 10, "finished rows are not made again"
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")


def test_broken_doubled_and_foreign_lines_are_mended(tmp_path, loaded):
    run(loaded, tmp_path / "run")
    whole, before = lines(tmp_path / "run"), measured(tmp_path / "run")
    path = tmp_path / "run" / "predictions.jsonl"
    kept = [json.dumps(row).encode() for row in whole]
    unfinished = json.dumps({key: whole[20][key] for key in ("id", "task", "prediction")}).encode()
    other = json.dumps({**whole[0], "id": "of-other-data"}).encode()
    mess = [
        kept[5],
        b"\x00\x00\x00",
        kept[3],
        kept[3],
        b'{"id": 7}',
        unfinished,
        b"\xff\xfe{",
        other,
        b"[1]",
        kept[9][:-9],
    ]
    path.write_bytes(b"\n".join(mess))
    with pytest.warns(UserWarning, match="dropped 5 broken lines"):
        run(loaded, tmp_path / "run", resume=True)
    assert lines(tmp_path / "run") == [*whole, json.loads(other)], "another run's rows are not lost, nor counted"
    assert measured(tmp_path / "run") == before


def test_resuming_more_or_fewer_examples(tmp_path, loaded):
    run(loaded, tmp_path / "run", load("test", 12))
    run(loaded, tmp_path / "run", resume=True)
    run(loaded, tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    run(loaded, tmp_path / "run", load("test", 12), resume=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole") and measured(tmp_path / "run")["examples"] == 12


def test_another_configuration_is_named(tmp_path, loaded):
    run(loaded, tmp_path, load("test", 4))
    before = (tmp_path / "predictions.jsonl").read_bytes()
    for pruner, options, word in (
        (prunekit.Pruner(keep_ratio=0.25), {}, "keep_ratio: 0.5 there, 0.25 here"),
        (None, {"data": "mini/heldout"}, "data: mini there, mini/heldout here"),
        (None, {"max_new_tokens": 3}, "max_new_tokens: 2 there, 3 here"),
    ):
        with pytest.raises(PrunekitError, match="another configuration") as caught:
            run(loaded, tmp_path, pruner=pruner, resume=True, **options)
        assert word in str(caught.value) and "\n" not in str(caught.value)
    other = Examples(load("test", 4), "vqa")
    with pytest.raises(PrunekitError, match="metric: None there, vqa here"):
        run(loaded, tmp_path, other, resume=True)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before and (tmp_path / "metrics.json").exists()


def test_what_was_an_error_is_tried_again(tmp_path, loaded):
    """A file that is put right between two runs; without that, resuming changes nothing."""
    examples = load("test", 12)
    file = tmp_path / "picture.png"
    file.write_bytes(b"half a picture")
    examples[7] = replace(examples[7], pictures=(Picture(file, "rows.jsonl row 7"),))
    run(loaded, tmp_path / "run", examples)
    broken = measured(tmp_path / "run")
    assert (broken["examples"], broken["errors"]) == (11, 1)
    run(loaded, tmp_path / "run", examples, resume=True)
    assert measured(tmp_path / "run") == broken and len(lines(tmp_path / "run")) == 12
    load("test", 12)[7].image().save(file)
    run(loaded, tmp_path / "run", examples, resume=True)
    run(loaded, tmp_path / "whole", examples)
    assert measured(tmp_path / "run") == measured(tmp_path / "whole") and measured(tmp_path / "run")["errors"] == 0
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_interrupted_by_the_keyboard(tmp_path, model_folder, monkeypatch):
    """SIGINT in the middle of the pruned pass: exit code 130, one line that says how to go on, and it does."""
    words = arguments(model_folder, tmp_path / "run", "batch_size=2")
    log = tmp_path / "log"
    work = functools.partial(interrupted_after, 5, lambda: run_main(monkeypatch, *words), log)
    assert exit_code(fork(work)) == 130
    said = [line for line in log.read_text().splitlines() if "prunekit:" in line]
    assert len(said) == 1 and f"resume=true hydra.run.dir={tmp_path / 'run'}" in said[0]
    assert "Traceback" not in log.read_text()
    assert len(lines(tmp_path / "run")) == 5 and not (tmp_path / "run" / "metrics.json").exists()
    code, _, err = run_main(monkeypatch, *words, "resume=true")
    assert code == 0, err
    assert len(lines(tmp_path / "run")) == 14


def test_another_methods_predictions_cannot_be_resumed(monkeypatch, tmp_path, model_folder):
    """A new run in an old folder, interrupted before its first prediction: nothing of the old one may pass for it."""
    from prunekit.evaluation.loop import Loop

    run_dir = tmp_path / "run"
    assert run_main(monkeypatch, *arguments(model_folder, run_dir, "scorer=random"))[0] == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", interrupted)
        code, _, err = run_main(monkeypatch, *arguments(model_folder, run_dir, "scorer=visual", "overwrite=true"))
        assert code == 130 and "resume=true overwrite=false" in err
    assert not (run_dir / "predictions.jsonl").exists() and not (run_dir / "metrics.json").exists()


def test_a_smaller_limit_deletes_nothing(monkeypatch, tmp_path, model_folder):
    run_dir = tmp_path / "run"
    assert run_main(monkeypatch, *arguments(model_folder, run_dir))[0] == 0
    assert run_main(monkeypatch, *arguments(model_folder, run_dir, "resume=true", "data.limit=7"))[0] == 0
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 14
    assert json.loads((run_dir / "metrics.json").read_text())["examples"] == 7
