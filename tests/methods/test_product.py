"""All methods, whichever files hold them: on three kinds of family, with each other's parts, from the command line."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import prunekit
import zoo
from prunekit.families import make_family
from prunekit.pruning.presets import presets
from prunekit.pruning.recipe import DEFAULTS
from prunekit.registry import KINDS
from prunekit.run.config import parse
from prunekit.run.config_store import register_options
from prunekit.run.objects import build_pruner
from prunekit.run.words import CONF
from zoo.tiny import make_batch, tiny_model

WITHDRAWS = {"vtw": {}, "todre": {"threshold": 1.0}}  # may leave no token: there is no budget to choose
FITTED = ("fitprune", "vtw_fitted")  # for one model alone, see test_calibrated_methods.py
METHODS = [name for name in prunekit.methods() if name not in (*WITHDRAWS, "vtw_fitted")]
NAMED = (
    "ivtp", "ivtp_rollout", "fastv", "sparsevlm", "sparsevlm_keep", "pyramiddrop", "dart",
    "random", "uniform", "oracle", "average_pool",
)  # fmt: skip
RENUMBERS = ("pyramiddrop", "sparsevlm", "average_pool")
FAMILIES = {"llava": "a CLIP tower", "deepseek_vl": "a SigLIP tower", "qwen2_vl": "M-RoPE"}
REFUSALS = {
    **{(name, "qwen2_vl"): "positions=renumber" for name in RENUMBERS},
    ("oracle", "deepseek_vl"): "fixed grid",
    ("todre", "deepseek_vl"): "where the visual tokens of 'deepseek_vl' stand is not known",
    ("oracle", "qwen2_vl"): "fixed grid",
}
BOXES = [[(0.0, 0.0, 0.5, 0.5)]] * 3


@functools.cache
def model_of(family: str):
    return zoo.build(family)


def outcome(name: str, family: str, padding: str, **options) -> list[int] | str:
    """How many visual tokens stand at the end of each sample, or the line of a refusal."""
    batch = zoo.batch(family, padding)
    try:
        with torch.no_grad(), prunekit.method(name, **options)(model_of(family), regions=BOXES) as trace:
            logits = model_of(family)(**batch.inputs).logits
    except prunekit.PrunekitError as error:
        return str(error)
    assert logits[:, -1].isfinite().all()
    return trace.cuts[-1].kept.sum(1).tolist()


@pytest.mark.parametrize(("name", "family"), itertools.product(METHODS, FAMILIES))
def test_runs_or_refuses_in_one_line(name, family):
    for padding, options in (("none", {"keep_ratio": 0.25}), ("left", {"keep_tokens": 3})):
        found = outcome(name, family, padding, **options)
        counts = zoo.batch(family, padding).visual.sum(1).tolist()
        expected = REFUSALS.get((name, family))
        if isinstance(found, str):
            assert "\n" not in found and len(found) < 200
            assert expected is None or expected in found
            assert name not in NAMED or expected, found
        elif name in NAMED:
            share = options.get("keep_ratio")
            assert expected is None
            assert found == [max(1, round(share * n)) if share else min(3, n) for n in counts]


@pytest.mark.parametrize(("name", "family"), itertools.product(WITHDRAWS, FAMILIES))
def test_withdrawal_leaves_nothing_and_takes_no_budget(name, family):
    always = {"selector": prunekit.create("selector", name, **options)} if (options := WITHDRAWS[name]) else {}
    result = outcome(name, family, "left", positions="keep", **always)
    refusal = REFUSALS.get((name, family))
    assert refusal in result if refusal else result == [0, 0, 0]
    assert "keeps no visual token: keep_ratio=0.5 cannot be met" in outcome(name, family, "none", keep_ratio=0.5)


def test_pruned_families_with_their_own_positions():
    """A method that renumbers runs on M-RoPE once told to keep positions."""
    for name in RENUMBERS:
        assert outcome(name, "qwen2_vl", "left", keep_tokens=3, positions="keep") == [3, 3, 3]


@pytest.mark.parametrize("family", ["instructblip", "blip-2"])
@pytest.mark.parametrize("name", ["fastv", "dart", "sparsevlm_keep", "ivtp_rollout"])
def test_models_with_a_q_former_are_pruned_in_their_llm(name, family):
    model, batch = zoo.build(family), zoo.batch(family, "left")
    with torch.no_grad(), prunekit.method(name, keep_tokens=4)(model) as trace:
        out = model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    assert out.shape[0] == 3
    assert trace.cuts[-1].kept.sum(1).tolist() == [4, 4, 4]
    assert (trace.tokens_per_layer[0] - trace.tokens_per_layer[-1]).tolist() == [4, 4, 4]


@functools.cache
def small_family():
    return make_family(tiny_model("llava"))


@functools.cache
def deep_family():
    """A LLaVA of 32 layers behind an encoder of 24, without weights: enough for a plan."""
    config = tiny_model("llava").config.__class__.from_dict(tiny_model("llava").config.to_dict())
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 32, 24
    with torch.device("meta"):
        return make_family(type(tiny_model("llava"))(config))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FITTED])
def test_keep_tokens_64_of_576(name):
    """The field's budget on the field's number of tokens."""
    plan = prunekit.method(name, keep_tokens=64).plan(deep_family())
    if name in NAMED:
        assert plan.quota(plan.cut_layers[-1], 576, 576) == 64


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_loads_again(name, tmp_path):
    pruner = prunekit.method(name, keep_ratio=0.25)
    pruner.save(tmp_path)
    again = prunekit.Pruner.load(tmp_path)
    assert again.describe() == pruner.describe() and again.name == name


def pair_outcome(first: dict, second: dict, kind: str) -> str | None:
    """None if the first method with one part of the second composes and has a plan, else the refusal."""
    parts = {**first, kind: second.get(kind, DEFAULTS[kind])}
    try:
        prunekit.Pruner.from_dict(parts, "pair").plan(small_family())
    except prunekit.PrunekitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", METHODS)
def test_every_ordered_pair_with_one_component_swapped(name):
    """Composes and has a plan, or is refused in one line that names a part of it."""
    known = {other: data for other, (_, data) in presets().items()}
    tried, refused, outcomes = 0, {}, {}
    for other, kind in itertools.product(METHODS, KINDS):
        if other != name:
            tried += 1
            part = kind, repr(known[other].get(kind, DEFAULTS[kind]))  # which several methods share
            if part not in outcomes:
                outcomes[part] = pair_outcome(known[name], known[other], kind)
            if (line := outcomes[part]) is not None:
                refused[other, kind] = line
    assert tried == 5 * (len(METHODS) - 1)
    for line in refused.values():
        assert "\n" not in line and len(line) < 200
    if name in NAMED:
        # What reads no rows cannot be joined by rollout, what needs some has none before layer 0; that is all.
        mine = {key: line for key, line in refused.items() if key[0] in NAMED}
        allowed = ("joins attention rows", "no layer lies before a cut at layer 0")
        assert all(any(word in line for word in allowed) for line in mine.values()), mine


COMMANDS = [
    (["method=fastv", "fusion=multi"], ("fastv", "multi", "one_shot", "topk", "drop")),
    (["method=fastv", "schedule=progressive"], ("fastv", "single", "progressive", "topk", "drop")),
    (["method=sparsevlm", "reducer=drop"], ("sparsevlm", "single", "sparsevlm", "rank", "drop")),
    (["scorer=sparsevlm", "schedule=progressive"], ("sparsevlm", "multi", "progressive", "topk", "drop")),
    (["method=dart", "reducer=recycle", "selector=stride"], ("dart", "ahead", "one_shot", "stride", "recycle")),
    (["method=ivtp_rollout", "scorer=fastv"], ("fastv", "rollout", "groups", "topk", "drop")),
]


@pytest.mark.parametrize(("words", "names"), COMMANDS, ids=lambda x: " ".join(x))
def test_recombination_on_the_command_line(words, names):
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = parse(OmegaConf.to_container(compose("config", overrides=words), resolve=True))
    pruner = build_pruner(config)
    assert tuple(part.registered_name for part in pruner.components.values()) == names
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with torch.no_grad(), pruner(model) as trace:
        model(**batch.inputs)
    assert trace.cuts[-1].kept.sum(1).tolist() == [8, 8, 8]


def test_variants_on_the_command_line():
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = parse(
            OmegaConf.to_container(compose("config", overrides=["method=sparsevlm", "variant=paper"]), resolve=True)
        )
    pruner = build_pruner(config)
    assert (pruner.selector.variant, pruner.reducer.variant, pruner.positions) == ("paper", "paper", "renumber")


@pytest.mark.parametrize(
    ("name", "positions"), [("pyramiddrop", "renumber"), ("sparsevlm", "renumber"), ("fastv", "keep")]
)
def test_positions_are_an_option_with_each_methods_own_default(name, positions):
    assert prunekit.method(name).positions == positions
    other = "keep" if positions == "renumber" else "renumber"
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    found = []
    for given in (None, other):
        with torch.no_grad(), prunekit.method(name, keep_ratio=0.25, positions=given)(model) as trace:
            found.append(model(**batch.inputs).logits[:, -1])
        assert trace.cuts[-1].kept.sum(1).tolist() == [4, 4, 4]
    assert (found[0] - found[1]).abs().max() > 1e-3
