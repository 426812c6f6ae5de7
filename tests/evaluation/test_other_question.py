"""Another question's tokens: who is whose partner, and that just those tokens stay."""

from __future__ import annotations

import json

import pytest

import prunekit
from commands import arguments, run_main
from prunekit.data import load
from prunekit.data.source import open_source
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.other import OtherQuestion, partners_of, with_evidence
from prunekit.evaluation.run import evaluate
from prunekit.models import load_model


def kept(folder):
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in rows}


def test_partners_ask_something_else_about_the_same_image():
    examples = load("test", 42)  # of the last image only two questions
    partners = partners_of(examples)
    by_id = {e.id: e for e in examples}
    assert set(partners) == set(by_id)
    for name, partner in partners.items():
        assert partner.image_id == by_id[name].image_id and partner.question != by_id[name].question
    assert len({p.id for p in partners.values()}) == len(partners)  # going round: each chooses for one other
    assert partners_of(load("test", 1)) == {}


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(str(model_folder), device="cpu")


@pytest.mark.parametrize(
    "pruner",
    [
        prunekit.Pruner("instruction", "multi", "progressive", keep_ratio=0.25),
        prunekit.Pruner("instruction", "rollout", prunekit.create("schedule", "one_shot", layer=3), keep_tokens=20),
        prunekit.method("fastv", keep_ratio=0.4),
    ],
    ids=["progressive", "rollout", "fastv"],
)
def test_what_stays_is_what_the_partner_keeps(tmp_path, loaded, pruner):
    examples = load("test", 13)  # the last is alone with its image
    other, some = with_evidence("other", pruner, examples)
    assert [e.id for e in some] == [e.id for e in examples[:12]]
    options = {"data": "d", "batch_size": 5, "max_new_tokens": 2, "batcher": Batcher(loaded)}
    evaluate(loaded, some, pruner, tmp_path / "own", **options)
    evaluate(loaded, some, other, tmp_path / "other", **options)
    own, swapped = kept(tmp_path / "own"), kept(tmp_path / "other")
    for example in some:
        partner = other.partners[example.id].id
        assert swapped[example.id]["kept"] == own[partner]["kept"]
        # The layers between two cuts see as many tokens as the partner's do, less what the questions differ in.
        extra = own[example.id]["prompt_tokens"] - own[partner]["prompt_tokens"]
        assert swapped[example.id]["tokens_per_layer"] == [n + extra for n in own[partner]["tokens_per_layer"]]
    assert any(swapped[e.id]["kept"] != own[e.id]["kept"] for e in some)
    assert json.loads((tmp_path / "other" / "run.json").read_text())["evidence"] == "other"


def test_with_itself_for_a_partner_nothing_changes(tmp_path, loaded):
    examples = load("test", 8)
    pruner = prunekit.Pruner(keep_ratio=0.25)
    options = {"data": "d", "batch_size": 8, "max_new_tokens": 3, "batcher": Batcher(loaded)}
    own = evaluate(loaded, examples, pruner, tmp_path / "own", **options)
    same = evaluate(loaded, examples, OtherQuestion(pruner, {e.id: e for e in examples}), tmp_path / "same", **options)
    assert [{**row, "run": ""} for row in own.rows] == [{**row, "run": ""} for row in same.rows]


def test_the_preset(monkeypatch, tmp_path, model_folder):
    code, out, err = run_main(monkeypatch, *arguments(model_folder, tmp_path, "experiment=instruction_dependence"))
    assert code == 0, err
    assert "6 of 6 jobs finished" in out and "IoU with own" in out
    cells = {c["row"]: c for c in json.loads((tmp_path / "results.json").read_text())["cells"]}
    own, other = kept(tmp_path / "own"), kept(tmp_path / "other")
    by_task: dict[str, list[float]] = {}
    for name, row in own.items():
        one, two = set(row["kept"]), set(other[name]["kept"])
        by_task.setdefault(row["task"], []).append(len(one & two) / len(one | two))
    expected = sum(sum(v) / len(v) for v in by_task.values()) / len(by_task)
    assert cells["other"]["overlap"]["mean"] == pytest.approx(expected)
    assert cells["own"]["overlap"]["mean"] == 1.0 and cells["random"]["overlap"]["mean"] < 0.5


def test_a_file_with_a_limit_is_at_hand(tmp_path, capsys):
    """As a preset runs on one's own data; without a limit it is a stream."""
    load("test", 1)[0].image().save(tmp_path / "i.png")
    asked = (("i.png", "what"), ("i.png", "where"), (None, "who"))
    rows = [{"image": name, "question": question, "answers": "a"} for name, question in asked]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "jsonl", "path": str(tmp_path / "q.jsonl")}
    pruner = prunekit.Pruner(keep_ratio=0.5)
    _, some = with_evidence("other", pruner, open_source({**data, "limit": 3}))
    assert [e.question for e in some] == ["what", "where"] and "1 unusable rows left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"set data\.limit"):
        with_evidence("other", pruner, open_source(data))
