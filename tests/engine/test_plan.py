"""Plans: written by hand, made from a pruner; pruners that cannot be changed."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import prunekit
from prunekit.engine.plan import CutPlan, Plan
from prunekit.engine.session import Session
from prunekit.families import family_of
from reference import dense_with_hidden_keys as dense
from reference import hidden_keys
from zoo.tiny import make_batch, tiny_model


def parts(scorer: str) -> dict:
    kinds = {"scorer": scorer, "fusion": "single", "selector": "topk", "reducer": "drop"}
    return {kind: prunekit.create(kind, name) for kind, name in kinds.items()}


def by_hand(scorer: str = "instruction") -> Plan:
    cuts = {2: CutPlan(layer=2, evidence=(1,)), 4: CutPlan(layer=4, evidence=(3,))}
    counts = {2: 9, 4: 4}
    return Plan(**parts(scorer), depth=6, cuts=cuts, quota=lambda layer, visual, length: counts[layer])


def test_a_plan_written_by_hand_prunes_as_masking_does():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    session = Session(by_hand(), family_of(model))
    session.install()
    try:
        with torch.no_grad():
            logits = model(**batch.inputs).logits
    finally:
        session.remove()
    assert [cut.kept.sum(1).tolist() for cut in session.trace.cuts] == [[9] * 3, [4] * 3]
    expected, _, _ = dense(tiny_model("llava", "eager"), batch, hidden_keys(batch, session.trace.cuts))
    words = batch.mask & ~batch.visual
    assert (logits - expected)[words].abs().max() < 1e-4


def test_a_pruner_becomes_a_plan_of_data_alone():
    schedule = prunekit.create("schedule", "progressive", layers=[2, 4])
    pruner = prunekit.Pruner("instruction", "single", schedule, keep_ratio=0.25)
    plan = pruner.plan(family_of(tiny_model("llava")))
    assert plan.cut_layers == (2, 4) and plan.evidence_layers == {1, 3} and plan.encoder is None
    assert [plan.quota(layer, 16, 30) for layer in (2, 4)] == [8, 4]
    assert not hasattr(plan, "pruner") and plan.scorer is pruner.scorer
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.depth = 7


class TestPrunersDoNotChange:
    def test_setting_says_what_to_do_instead(self):
        pruner = prunekit.Pruner(keep_ratio=0.5)
        with pytest.raises(ValueError, match=r"replace\(keep_ratio=...\) makes another"):
            pruner.keep_ratio = 0.25
        assert pruner.keep_ratio == 0.5 and copy.copy(pruner).keep_ratio == 0.5

    def test_replace_makes_another(self):
        pruner = prunekit.method("fastv", keep_ratio=0.5)
        other = pruner.replace(keep_ratio=0.25)
        assert (pruner.keep_ratio, other.keep_ratio, other.name) == (0.5, 0.25, "fastv")
        assert other.scorer is pruner.scorer and other.schedule is pruner.schedule
        assert pruner.replace(keep_tokens=7).keep_ratio is None and pruner.replace(budget="final:7").keep_ratio is None
        assert pruner.replace(scorer="random").scorer == prunekit.create("scorer", "random")
        with pytest.raises(ValueError, match=r"option of a pruner: 'keep_ration'.*keep_ratio"):
            pruner.replace(keep_ration=0.5)
        with pytest.raises(ValueError, match="exclude each other"):
            pruner.replace(keep_ratio=0.5, keep_tokens=3)

    def test_from_dict_is_what_describe_gives(self):
        pruner = prunekit.method("fastv", keep_tokens=9)
        again = prunekit.Pruner.from_dict(pruner.describe())
        assert again.describe() == pruner.describe()
        with pytest.raises(ValueError, match="mine: unknown entry 'scorers'"):
            prunekit.Pruner.from_dict({"scorers": "random"}, "mine")
