"""Presets: what is wrong with one is named, and what is given beside it counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import prunekit
from commands import arguments, run_main
from prunekit.components.scorers import InstructionScorer
from prunekit.pruning.presets import read_preset


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
