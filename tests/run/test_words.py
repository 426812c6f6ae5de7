"""The words of the command line: what Hydra cannot read is said with its quoting, and what is printed can be pasted."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import prunekit
from commands import arguments, interrupted_after, run_main
from paths import ROOT
from processes import exit_code, fork
from prunekit.files import write_whole
from prunekit.records import rows
from prunekit.run.context import TASKS
from prunekit.run.words import CONF, prepared, quoted
from runs import lines

FOLDERS = [
    "my runs/a",
    "läufe",
    "a=b",
    "a (1)",
    "it's",
    'the "first"',
    "a,b",
    "[1]",
    "{x}",
    "tab\tand space ",
    "$HOME",
    "~",
]
FOLDERS += ["back\\slash", "123", "null", "a#b", "a:b", "*?", "plain/name-1.0"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_quoted_option_is_read_as_it_was(name):
    """By the shell, and then by Hydra."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    said = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {quoted("hydra.run.dir", name)}'], capture_output=True, text=True
    )
    word = said.stdout.removesuffix("\n")
    override = OverridesParser.create().parse_override(word)
    assert override.value() == name and prepared([word]) == [word]


UNREADABLE = {
    "~": (["hydra.run.dir=~/a"], str(Path.home() / "a")),
    "letters": (["hydra.run.dir=läufe"], "läufe"),
    "equals": (["hydra.run.dir=a=b"], "a=b"),
    "bracket": (["hydra.run.dir=a(1)"], "a(1)"),
    "space": (["hydra.run.dir=my", "runs/a"], "my runs/a"),
    "spaces": (["hydra.run.dir=my", "own", "runs/a", "seed=1"], "my own runs/a"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_hydra_cannot_read_is_said_with_its_quoting(monkeypatch, what):
    """The line that it gives works."""
    words, wanted = UNREADABLE[what]
    code, _, err = run_main(monkeypatch, *words)
    assert code == 1 and len(err.splitlines()) == 1 and "Lexer" not in err
    (word,) = shlex.split(re.split(r"write |is quoted: ", err)[1])
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(word).value() == wanted


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["schedule.layers=[1,2"], "schedule.layers=[1,2 cannot be read"),
        (["sweep"], "'sweep' is no option of the form key=value"),
        (["scorer=choice(instruction"], "cannot be read"),
        (["~reducer"], "set it by reducer=VALUE"),
        (["~scorer.name"], "a run needs 'scorer.name'"),
        (["~model"], "a run needs 'model'"),
        (["~data.limit"], "a run needs 'data.limit'"),
        (["~logger.mode"], "a run needs 'logger.mode'"),
        (["-m", "~seed", "keep_ratio=0.5,0.25"], "a run needs 'seed'"),
        (["-m", "method=glob(x*)"], "no method is named so; there are "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_end_in_one_clear_line(monkeypatch, words, word):
    code, _, err = run_main(monkeypatch, *words)
    assert code == 1 and word in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["my läufe = (1)", "it's"])
def test_the_line_after_an_interruption_can_be_pasted(monkeypatch, tmp_path, model_folder, name):
    """Into a shell, as it stands."""
    words = [a for a in arguments(model_folder, "") if not a.startswith("hydra.run.dir")]
    log, folder = tmp_path / "log", shlex.split(quoted("hydra.run.dir", str(tmp_path / name)))[0]
    work = functools.partial(interrupted_after, 5, lambda: run_main(monkeypatch, *words, folder), log)
    assert exit_code(fork(work)) == 130
    (said,) = [line for line in log.read_text().splitlines() if "interrupted" in line]
    pasted = said.split("repeat it with: ")[1]
    assert len(lines(tmp_path / name)) == 5
    command = f"{shlex.join([sys.executable, '-m', 'prunekit', *words])} {pasted}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / name)) == 14


def test_the_line_for_wandb_can_be_pasted(monkeypatch, tmp_path, model_folder):
    words = [a for a in arguments(model_folder, tmp_path / "my runs") if not a.startswith("logger.mode")]
    code, out, err = run_main(monkeypatch, *words, "logger.mode=offline")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "wandb sync" in line]
    wandb, sync, folder = shlex.split(line.split("to upload: ")[1])
    assert (wandb, sync) == ("wandb", "sync") and list(Path(folder).glob("*.wandb"))


class TestGlobs:
    def test_of_a_group_is_swept(self, monkeypatch, tmp_path):
        words = ["-m", "task=families", "method=glob(fas*)", f"hydra.sweep.dir={tmp_path}"]
        code, out, err = run_main(monkeypatch, *words)
        assert code == 0 and "3 of 3 jobs finished" in out, err

    def test_leaves_internal_options_out(self):
        (word,) = prepared(["schedule=glob(*,exclude=enc*)"])
        names = word.removeprefix("schedule=").split(",")
        assert "progressive" in names and "encoder" not in names and not any(n.startswith("_") for n in names)


@pytest.mark.parametrize("choice", ["none", "stdout", "default", "disabled"])
@pytest.mark.parametrize("what", ["job_logging", "hydra_logging"])
def test_hydras_own_logging_options_work(monkeypatch, tmp_path, what, choice):
    if (what, choice) == ("hydra_logging", "stdout"):
        pytest.skip("Hydra has no such option")
    words = ["task=families", f"hydra.run.dir={tmp_path}"]
    code, out, err = run_main(monkeypatch, *words, f"hydra/{what}={choice}")
    assert code == 0 and "llava_next" in out, err


def test_the_log_goes_to_the_run_folder(monkeypatch, tmp_path):
    assert run_main(monkeypatch, "task=families", f"hydra.run.dir={tmp_path}")[0] == 0
    assert (tmp_path / "prunekit.log").exists()


def test_the_version_is_prunekits(monkeypatch):
    assert run_main(monkeypatch, "--version") == (0, f"prunekit {prunekit.__version__}\n", "")


def test_help_lists_what_users_may_choose(monkeypatch):
    code, out, _ = run_main(monkeypatch, "--help")
    groups = dict(line.split(": ", 1) for line in out.split("== Config ==")[0].splitlines() if ": " in line)
    assert code == 0 and {"scorer", "schedule", "train", "method", "data"} <= groups.keys()
    assert "progressive" in groups["schedule"] and "fastv" in groups["method"]
    assert not [name for names in groups.values() for name in names.split(", ") if name.startswith("_")]
    assert "overwrite: false" in out


def test_help_says_what_each_option_does(monkeypatch):
    """In one line each, with its value and its choices; of a method its own components' options."""
    code, out, _ = run_main(monkeypatch, "method=fastv", "--help")
    options = out.split("== Config ==")[1]
    about = dict(line.split(": ", 1) for line in options.splitlines() if ": " in line)
    assert code == 0 and about["scorer.name"].startswith("fastv")
    assert "head-mean" not in about["scorer.name"] and "reads the row of the last token" in about["scorer.variant"]
    assert about["schedule.layer"].split() == ["2", "#", "tokens", "go", "before", "this", "layer"]
    assert (
        "auto | online | offline | disabled" in about["logger.mode"]
        and "l1 | entropy | hoyer" in about["train.penalty"]
    )
    assert " _fastv" not in out
    names = [line.split(":")[0] for line in options.splitlines() if re.match(r"[a-z_.]+: ", line)]
    data = ("data.path", "data.columns")  # what a data set's file names beside what all have
    assert not [name for name in names if "#" not in about[name] and not name.startswith(data)]


class TestFullDisk:
    """A disk that is full names the file that was being written; ``/dev/full`` is always full."""

    def test_rows(self):
        from prunekit.run.messages import one_line

        with pytest.raises(OSError) as caught, open("/dev/full", "ab") as file:
            rows.append(file, {"id": "a"})
        assert one_line(caught.value) == "'/dev/full': No space left on device"

    @pytest.mark.parametrize("name", ["metrics.json", "job.json", "kept.npz", "predictions.jsonl"])
    def test_files_of_a_run(self, monkeypatch, tmp_path, model_folder, name):
        words = arguments(model_folder, tmp_path)
        assert run_main(monkeypatch, *words)[0] == 0
        part = f"{name}.{os.getpid()}.part"
        (tmp_path / part).symlink_to("/dev/full")
        code, _, err = run_main(monkeypatch, *words)
        said = [line for line in err.splitlines() if "error:" in line]
        assert code == 1 and said == [f"prunekit: error: '{tmp_path / part}': No space left on device"]

    def test_what_no_file_is_known_of_names_the_run_folder(self, monkeypatch, tmp_path, model_folder):
        """Libraries raise errors of their own."""
        from prunekit.records import folder

        def full(*_, **__):
            raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

        monkeypatch.setattr(folder.Job, "write", full)
        code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path))
        assert code == 1 and f"'{tmp_path}' cannot be written" in err

    def test_other_errors_keep_their_words(self, tmp_path):
        from prunekit.run.messages import one_line

        with pytest.raises(OSError) as caught:
            write_whole(tmp_path / "no" / "folder", "")
        assert "no/folder" in one_line(caught.value)
        assert one_line(OSError("the hub says no")) == "the hub says no"


def test_the_docs_name_tasks_that_exist():
    """Every ``task=NAME`` of the documents."""
    tasks = {name for name in TASKS if importlib.util.find_spec(f"prunekit.run.{name}")}
    assert "eval" in tasks
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        assert set(re.findall(r"task=(\w+)", page.read_text())) <= tasks, page.name
    assert (CONF / "config.yaml").exists()


@pytest.mark.parametrize(("layers", "words"), [([4], "cut before layer 4"), ([2, 4], "cut before layers 2, 4")])
def test_one_layer_is_not_several(layers, words):
    from prunekit.results.run_table import cut_before

    assert cut_before(layers) == words
