"""Dialogues on one cache: a run that hears the first question alone against turns that really go on from one cache."""

from __future__ import annotations

import json

import pytest
import torch

import prunekit
from commands import run_main
from prunekit.data import load
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.other import with_evidence
from prunekit.evaluation.run import evaluate
from prunekit.models import load_model

NEW = 4


@pytest.fixture(scope="module")
def trained():
    return load_model("mini", device="cpu")


def turn_by_turn(loaded, pruner, dialogue):
    """Answers to all questions about one image from a single cache, the right answers of earlier turns put in between,
    and the visual tokens that stay."""
    batcher, model, answers = Batcher(loaded), loaded.model, []
    prompts = [batcher.encoded([example]) for example in dialogue]
    with torch.no_grad(), pruner(model, prompt="all") as trace:
        out = model(**prompts[0], use_cache=True)
        kept = trace.cuts[-1].kept[0].nonzero()[:, 0].tolist()
        heard = prompts[0]["input_ids"].shape[1]
        for number in range(len(dialogue)):
            tokens, length = [], heard
            for _ in range(NEW):
                tokens.append(int(out.logits[0, -1].argmax()))
                step = torch.tensor([tokens[-1:]])
                length += 1
                mask = torch.ones(1, length, dtype=torch.long)
                out = model(input_ids=step, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
            text = loaded.processor.decode(tokens, skip_special_tokens=False).split("</s>")[0]
            answers.append(text.strip())
            if number + 1 < len(dialogue):  # the answer that was said is taken back, the right one goes on
                out.past_key_values.crop(-NEW)
                ids = prompts[number + 1]["input_ids"]
                rest, heard = ids[:, heard:], ids.shape[1]
                mask = torch.ones(1, heard, dtype=torch.long)
                out = model(input_ids=rest, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
    return answers, kept


@pytest.mark.parametrize(
    "pruner",
    [
        prunekit.method("ivtp", keep_ratio=0.1),
        prunekit.method("fastv", keep_ratio=0.1),
        prunekit.method("divprune", keep_ratio=0.1),
        prunekit.method("ivtp", keep_ratio=0.1).replace(positions="renumber"),
    ],
    ids=["ivtp", "fastv", "divprune", "renumbered"],
)
def test_the_run_equals_turns_on_one_cache(tmp_path, trained, pruner):
    examples = load("turns", 8)
    acting, same = with_evidence("first", pruner, examples)
    run = evaluate(trained, same, acting, tmp_path / "run", data="d", batch_size=3, max_new_tokens=NEW)
    rows = {row["id"]: row for row in run.rows}
    for start in (0, 4):
        dialogue = examples[start : start + 4]
        answers, kept = turn_by_turn(trained, pruner, dialogue)
        assert [rows[e.id]["prediction"] for e in dialogue] == answers
        assert all(rows[e.id]["kept"] == kept for e in dialogue)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["evidence"] == "first"
    own = evaluate(trained, examples, pruner, tmp_path / "own", data="d", batch_size=3, max_new_tokens=NEW)
    changed = [r["id"] for r, o in zip(run.rows, own.rows, strict=True) if r["kept"] != o["kept"]]
    assert all(e.history for e in examples if e.id in changed)  # a first turn hears the same either way
    assert bool(changed) == (pruner.name != "divprune")  # what looks at no question keeps the same


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path, trained):
    original = trained.processor.chat_template
    trained.processor.chat_template = "{{ messages | length }} " + original
    try:
        acting, examples = with_evidence("first", prunekit.Pruner(keep_ratio=0.5), load("turns", 2))
        with pytest.raises(ValueError, match=r"eval\.evidence=first: in 'turns-\d+-1' the chat template writes"):
            evaluate(trained, examples, acting, tmp_path, data="d", batch_size=2, max_new_tokens=1)
    finally:
        trained.processor.chat_template = original


def test_the_preset(monkeypatch, tmp_path):
    code, out, err = run_main(
        monkeypatch, "experiment=dialogue", "data.limit=8", "logger.mode=disabled", "device=cpu",
        f"hydra.run.dir={tmp_path}", "sweep.only=[fastv,visionzip,'fastv anew']",
    )  # fmt: skip
    assert code == 0, err
    cells = {c["row"]: c for c in json.loads((tmp_path / "results.json").read_text())["cells"]}
    assert set(cells) == {"fastv", "visionzip", "fastv anew"}
    assert cells["fastv"]["accuracy"]["turn 1"] == cells["fastv anew"]["accuracy"]["turn 1"]
    line = next(line for line in out.splitlines() if line.startswith("| accuracy by task | turn 1"))
    row = next(line for line in out[out.index(line) :].splitlines() if line.startswith("| fastv |"))
    assert row.count("[") == 4  # an interval for every turn
