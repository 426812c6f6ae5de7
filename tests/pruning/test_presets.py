"""Presets: what is wrong with one is named, and what is given beside it counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import prunekit
from commands import arguments, run_main
from prunekit.components.scorers import InstructionScorer
from prunekit.pruning.presets import read_preset
from prunekit.run import config_store
from prunekit.run.config_store import Shelf, register_options
from prunekit.run.words import CONF


def test_an_unregistered_component_has_its_own_name_and_cannot_be_saved(tmp_path):
    @dataclass
    class Inverted(InstructionScorer):
        def score(self, view):
            return -super().score(view)

    pruner = prunekit.Pruner(Inverted())
    assert pruner.describe()["scorer"]["name"] == "Inverted"
    with pytest.raises(ValueError, match="Inverted is not registered"):
        pruner.save(tmp_path)


class TestPresets:
    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("scorer: {name: instruction, rowz: last}", "Did you mean 'rows'"),
            ("keep_raito: 0.1", "Did you mean 'keep_ratio'"),
            ("schedul: one_shot", "Did you mean 'schedule'"),
            ("scorer: {rows: last}", "scorer must be a name"),
            ("scorer: no_such_scorer", "no_such_scorer"),
            ("a: [1", "not YAML"),
            ("- 1", "mapping"),
        ],
    )
    def test_a_broken_one_is_named_and_left_out(self, tmp_path, monkeypatch, text, word):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=word):
            read_preset(path)
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        with pytest.warns(UserWarning, match=r"mine\.yaml"):
            assert "mine" not in prunekit.methods()

    def test_a_given_budget_replaces_the_presets(self, tmp_path, monkeypatch):
        (tmp_path / "narrow.yaml").write_text("scorer: random\nfusion: single\nschedule: one_shot\nkeep_tokens: 3\n")
        (tmp_path / "half.yaml").write_text("scorer: random\nfusion: single\nschedule: one_shot\nkeep_ratio: 0.5\n")
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        assert prunekit.method("narrow").keep_tokens == 3
        assert prunekit.method("narrow", keep_ratio=0.25).keep_tokens is None
        assert prunekit.method("half", keep_tokens=8).keep_ratio is None

    def test_on_the_command_line_too(self, tmp_path, monkeypatch, model_folder):
        (tmp_path / "half.yaml").write_text("scorer: random\nfusion: single\nschedule: one_shot\nkeep_ratio: 0.5\n")
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        run_dir = tmp_path / "run"
        code, _, err = run_main(
            monkeypatch, *arguments(model_folder, run_dir, "method=half", "keep_tokens=9", "data.limit=3")
        )
        assert code == 0, err
        assert len(json.loads((run_dir / "predictions.jsonl").read_text().splitlines()[0])["kept"]) == 9
        monkeypatch.delenv("PRUNEKIT_METHODS")  # a method whose folder is gone is no option of the next call
        code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "gone", "method=half"))
        assert code == 1 and "'half'" in err, err


class TestStore:
    """What Hydra composes from."""

    def test_it_is_filled_once(self, monkeypatch):
        register_options()
        before = ConfigStore.instance().repo
        monkeypatch.setattr(config_store, "_store", lambda *_, **__: pytest.fail("filled again"))
        register_options()
        assert ConfigStore.instance().repo is before

    def test_another_store_and_a_fill_that_failed_are_filled_again(self, monkeypatch):
        register_options()
        monkeypatch.setattr(ConfigStore.instance(), "repo", {})
        with monkeypatch.context() as patch:
            patch.setattr(config_store, "_register_method", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                register_options()
        register_options()
        repo = ConfigStore.instance().repo
        assert isinstance(repo, Shelf) and {"method", "scorer"} <= {*repo} and "fastv.yaml" in repo["method"]

    def test_a_composed_configuration_is_its_own(self):
        register_options()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            one = compose("config", overrides=["method=fastv"])
            one.schedule.layer = 7
            assert compose("config", overrides=["method=fastv"]).schedule.layer == 2
