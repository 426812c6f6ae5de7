"""What must not go wrong in silence: plans, options, presets, budgets, costs, runs in one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from test_cli import arguments, model_folder, run_main  # noqa: F401  (model_folder is a fixture)

import prunekit
from prunekit.components.scorers import InstructionScorer
from prunekit.cost import layer_macs, prefill_cost
from prunekit.families import make_family
from prunekit.pruning.presets import read_preset
from prunekit.registry import registry
from prunekit.run.config_store import register_options
from zoo.tiny import make_batch, tiny_model


@dataclass
class Given(prunekit.Schedule):
    """A schedule that returns what it is given."""

    plan: tuple = ()

    def cuts(self, depth, keep_ratio):
        return self.plan


CUT = prunekit.Cut


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch):
    """Components that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_classes", {kind: dict(table) for kind, table in registry._classes.items()})
    monkeypatch.setattr(registry, "_files", dict(registry._files))


@pytest.mark.parametrize(
    "plan",
    [
        (),
        (CUT(99, 0.5),),
        (CUT(2, 0.5, site="vision"),),
        (CUT(4, 0.7), CUT(2, 0.5)),
        (CUT(2, 0.3), CUT(4, 0.5)),
        (CUT(2, 0.9),),
    ],
)
def test_a_schedule_that_returns_no_plan_is_refused(plan):
    with pytest.raises(ValueError, match="schedule 'Given' must"):
        prunekit.Pruner("random", "single", Given(plan), keep_ratio=0.5).apply(tiny_model("llava"))


def test_an_unregistered_component_has_its_own_name_and_cannot_be_saved(tmp_path):
    @dataclass
    class Inverted(InstructionScorer):
        def score(self, view):
            return -super().score(view)

    pruner = prunekit.Pruner(Inverted())
    assert pruner.describe()["scorer"]["name"] == "Inverted"
    with pytest.raises(ValueError, match="Inverted is not registered"):
        pruner.save(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "options", "word"),
    [
        ("schedule", "one_shot", {"layer": "2"}, "'2'"),
        ("schedule", "one_shot", {"layer": 2.5}, "2.5"),
        ("schedule", "progressive", {"layers": [2, 3.5]}, "3.5"),
        ("fusion", "multi", {"window": True}, "True"),
    ],
)
def test_options_of_another_type(kind, name, options, word):
    with pytest.raises(ValueError, match=word):
        prunekit.create(kind, name, **options)


def test_a_selector_that_keeps_another_number_than_asked_is_followed():
    """Thresholds and outliers keep what they find: lengths, trace and layers agree."""

    @dataclass
    class Half(prunekit.Selector):
        def select(self, view, scores, quota):
            return view.alive & (torch.arange(scores.shape[1]) % 2 == 0)

    model, batch = tiny_model("llava"), make_batch("llava")
    with torch.no_grad(), prunekit.Pruner("random", "single", "one_shot", Half(), keep_ratio=0.1)(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[0].kept.sum(1).tolist() == [8, 8, 8]
    assert trace.tokens_per_layer[-1].tolist() == [18, 18, 18]


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

    def test_on_the_command_line_too(self, tmp_path, monkeypatch, model_folder):  # noqa: F811
        (tmp_path / "half.yaml").write_text("scorer: random\nfusion: single\nschedule: one_shot\nkeep_ratio: 0.5\n")
        monkeypatch.setenv("PRUNEKIT_METHODS", str(tmp_path))
        run_dir = tmp_path / "run"
        code, _, err = run_main(
            monkeypatch, *arguments(model_folder, run_dir, "method=half", "keep_tokens=9", "data.limit=3")
        )
        assert code == 0, err
        assert len(json.loads((run_dir / "predictions.jsonl").read_text().splitlines()[0])["kept"]) == 9


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


def test_a_cut_before_layer_0_saves():
    family, tokens = make_family(tiny_model("llava")), torch.full((6, 1), 14)
    cost = prefill_cost(family, tokens, torch.tensor([26]), None)
    expected = float(layer_macs(torch.tensor(14), 32, 48) / layer_macs(torch.tensor(26), 32, 48))
    assert cost.flops_ratio == pytest.approx(expected) and cost.kv_ratio == pytest.approx(14 / 26)
    assert cost.flops_ratio_with_vision is None


def test_another_methods_predictions_cannot_be_resumed(monkeypatch, tmp_path, model_folder):  # noqa: F811
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


def test_a_smaller_limit_deletes_nothing(monkeypatch, tmp_path, model_folder):  # noqa: F811
    run_dir = tmp_path / "run"
    assert run_main(monkeypatch, *arguments(model_folder, run_dir))[0] == 0
    assert run_main(monkeypatch, *arguments(model_folder, run_dir, "resume=true", "data.limit=7"))[0] == 0
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 14
    assert json.loads((run_dir / "metrics.json").read_text())["examples"] == 7


@pytest.mark.parametrize("words", [["--foo"], ["model.name=5"], ["model.device_map={a:0}"], ["data.name=gqaa"]])
def test_more_bad_input(monkeypatch, tmp_path, model_folder, words):  # noqa: F811
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path), *words)
    assert code == 1 and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert words[0].split("=")[0].lstrip("-") in err


def test_the_sweep_flag_may_stand_anywhere(monkeypatch, tmp_path, model_folder):  # noqa: F811
    given = arguments(model_folder, tmp_path / "unused", "data.limit=3")
    options = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "keep_ratio=0.5,0.25"]
    code, out, err = run_main(monkeypatch, *given, "-m", *options)
    assert code == 0, err
    assert "2 of 2 jobs finished" in out
