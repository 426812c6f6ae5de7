"""A method of the user's own: one file that becomes an option, also in the worker processes of a sweep."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import prunekit
from commands import arguments
from paths import ROOT
from prunekit.registry import registry
from prunekit.run.config_store import register_options

MINE = """
from dataclasses import dataclass
import prunekit

@prunekit.register("scorer", "mine")
@dataclass
class Mine(prunekit.Scorer):
    alpha: float = 1.0
    def score(self, view):
        return self.alpha * self.weights(view)
    def weights(self, view):  # a name that options of shipped components have
        return view.visual(view.hidden_states.norm(dim=-1))

prunekit.compose("mine", scorer={"name": "mine", "alpha": -1.0}, fusion="single", schedule="one_shot", keep_ratio=0.25)
"""


def prune(folder: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunekit", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, env=env)


@pytest.fixture(autouse=True)
def registry_as_before():
    """What these tests register in this process must not reach others."""
    book = registry
    before = copy.deepcopy((book._classes, book._files, book._compositions))
    yield
    book._classes, book._files, book._compositions = before


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(MINE)
    (tmp_path / "methods" / "broken.py").write_text("import no_such_module_anywhere\n")
    return tmp_path


def launchers():
    return [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=8"],
    ]


@pytest.mark.parametrize("launcher", launchers(), ids=["joblib", "submitit_local"])
def test_in_workers_of_a_sweep(folder, model_folder, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher[0].split('=')[1].split('_')[0]}_launcher")
    fixed = arguments(model_folder, "unused")
    sweep = [f"hydra.sweep.dir={folder / 'sweep'}", "scorer=mine", "scorer.alpha=1,-1", "schedule=one_shot"]
    done = prune(folder, "-m", *fixed, *launcher, *sweep)
    assert done.returncode == 0, done.stderr
    assert f"loaded {folder / 'methods' / 'mine.py'}" in done.stdout
    assert "broken.py" in done.stderr and "no_such_module_anywhere" in done.stderr
    assert "Traceback" not in done.stderr
    kept = []
    for job in ("0", "1"):
        made = json.loads((folder / "sweep" / job / "metrics.json").read_text())
        assert made["method"]["scorer"] == "mine"
        lines = (folder / "sweep" / job / "predictions.jsonl").read_text().splitlines()
        kept.append({json.loads(line)["id"]: set(json.loads(line)["kept"]) for line in lines})
    assert all(not kept[0][i] & kept[1][i] for i in kept[0])  # opposite signs, half and half


def test_a_composition_in_the_same_file_is_a_method(folder, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_METHODS", str(folder / "methods"))
    (folder / "methods" / "mine.py").write_text(MINE.replace('"mine"', '"mine_composed"'))
    with pytest.warns(UserWarning, match=r"broken\.py: ModuleNotFoundError"):
        assert prunekit.methods()["mine_composed"] == folder / "methods" / "mine.py"
    pruner = prunekit.method("mine_composed")
    assert (pruner.scorer.alpha, pruner.keep_ratio, pruner.name) == (-1.0, 0.25, "mine_composed")
    assert prunekit.method("mine_composed", scorer="random").scorer.registered_name == "random"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('prunekit.compose("one", scorer="no_such_scorer")', "no_such_scorer"),
        ('prunekit.compose("one", scorer={"name": "random", "sed": 1})', "Did you mean 'seed'"),
        ('prunekit.compose("one", scorrer="random")', "Did you mean 'scorer'"),
    ],
)
def test_a_composition_that_does_not_fit_is_named_and_left_out(tmp_path, monkeypatch, line, word):
    (tmp_path / "wrong.py").write_text(f"import prunekit\n{line.replace('one', 'wrong_one')}\n")
    monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
    with pytest.warns(UserWarning, match=rf"wrong\.py.*{word}"):
        assert "wrong_one" not in prunekit.methods()


def test_a_file_that_breaks_halfway_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text(MINE.replace('"mine"', '"halfway"') + "\n1 / 0\n")
    monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
    with pytest.warns(UserWarning, match=r"halfway\.py: ZeroDivisionError"):
        assert "halfway" not in prunekit.available("scorer")
    assert "halfway" not in prunekit.methods()


class TestUsersFiles:
    def test_a_component_that_hydra_cannot_hold_does_not_stop_the_others(self, tmp_path, monkeypatch):
        (tmp_path / "odd_default.py").write_text(
            "import prunekit\nfrom dataclasses import dataclass, field\n"
            "@prunekit.register('scorer', 'odd_default')\n@dataclass\nclass A(prunekit.Scorer):\n"
            "    thing: object = field(default_factory=object)\n"
        )
        (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
        (tmp_path / "called_name.py").write_text(
            "import prunekit\nfrom dataclasses import dataclass\n"
            "@prunekit.register('scorer', 'called_name')\n@dataclass\nclass B(prunekit.Scorer):\n    name: str = ''\n"
        )
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        with pytest.warns(UserWarning) as caught:
            register_options()
        said = " ".join(str(w.message) for w in caught)
        assert "odd_default" in said and "leaves.py" in said and "called_name.py" in said

    def test_a_field_that_is_not_an_option(self):
        @prunekit.register("scorer", "with_state")
        @dataclass
        class WithState(prunekit.Scorer):
            alpha: float = 1.0
            half: float = field(init=False, default=0.5)

        assert prunekit.Pruner("with_state", "single").describe()["scorer"] == {"name": "with_state", "alpha": 1.0}
        register_options()
