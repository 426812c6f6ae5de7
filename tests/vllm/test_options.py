"""What a server or a request may ask for, and what is refused, without vLLM."""

import json
from dataclasses import dataclass

import pytest
from transformers import AutoConfig

import prunekit
import zoo
from prunekit.models import EMBEDDED
from prunekit.registry import registry
from prunekit.vllm.options import (
    Served,
    kept,
    options_of_config,
    outline_family,
    overridden,
    pruner_of,
    reads_question,
)


@pytest.fixture(scope="module")
def family():
    return outline_family(AutoConfig.from_pretrained(EMBEDDED["mini"]))


@pytest.fixture(scope="module")
def served(family):
    return Served(family, mrope=False, options={"method": "divprune", "keep_ratio": 0.25})


def test_outline_has_no_weights(family):
    assert {p.device.type for p in family.model.parameters()} == {"meta"}


def test_server_options_are_the_pruner_of_the_same_words(served):
    pruner = served.pruner(served.options)
    assert pruner.describe() == prunekit.method("divprune", keep_ratio=0.25).describe()


def test_described_pruner_is_read_back(served):
    pruner = prunekit.method("visionzip", keep_ratio=0.3)
    options = {key: value for key, value in pruner.describe().items() if key != "positions"}
    assert served.pruner(json.loads(json.dumps(options))).describe() == pruner.describe()


def test_without_a_method_there_is_one_cut_at_the_input(served):
    pruner = served.pruner({"selector": "maxmin", "keep_tokens": 7})
    assert (pruner.schedule.registered_name, pruner.fusion.registered_name) == ("input", "single")
    assert kept(pruner, served.family, 144) == 7


@pytest.mark.parametrize(
    "request_options, name, ratio",
    [
        ({"keep_ratio": 0.5}, "divprune", 0.5),
        ({"method": "fastervlm"}, "fastervlm", 0.25),
        ({"method": "fastervlm", "keep_ratio": 0.75}, "fastervlm", 0.75),
    ],
)
def test_request_overrides_the_server(served, request_options, name, ratio):
    pruner = served.pruner(served.merged(request_options))
    assert (pruner.name, pruner.keep_ratio) == (name, ratio)


def test_request_for_the_dense_model(served):
    assert served.merged(None) is None


def test_another_count_replaces_the_server_s():
    assert overridden({"method": "mmr", "keep_ratio": 0.5}, {"keep_tokens": 9}) == {"method": "mmr", "keep_tokens": 9}


def test_a_method_takes_the_place_of_all_components():
    server = {"selector": {"name": "mmr"}, "scorer": "cls", "keep_ratio": 0.5}
    assert overridden(server, {"method": "divprune"}) == {"method": "divprune", "keep_ratio": 0.5}


@pytest.mark.parametrize(
    "request_options, word",
    [
        (3, "mapping"),
        ("divprune", "mapping"),
        ({"method": "divprun"}, "Did you mean 'divprune'"),
        ({"method": 7}, "method"),
        ({"keep_ratio": 2}, "keep_ratio"),
        ({"keep_ratio": "much"}, "keep_ratio"),
        ({"keep_tokens": 0}, "keep_tokens"),
        ({"selector": {"name": "mmr"}}, "selector"),
        ({"reducer": "perceiver", "weights": "/etc/passwd"}, "weights"),
        ({"positions": "keep"}, "positions"),
        ({"method": "fastv"}, "'cdpruner'"),
        ({"method": "evit"}, "'fastervlm'"),
        ({"method": "uniform"}, '"schedule": "input"'),
        ({"method": "prumerge"}, "selector=topk"),
        ({"method": "oracle"}, "oracle"),
        ({"method": "vidcom2"}, "videos"),
        ({"method": "todre"}, "todre"),
    ],
)
def test_request_is_refused_in_one_line(served, request_options, word):
    with pytest.raises(prunekit.PrunekitError) as caught:
        served.pruner(served.merged(request_options))
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, word",
    [
        ([1], "mapping"),
        ({"methd": "divprune"}, "methd"),
        ({"scorer": {"alpha": 1}}, "scorer"),
        ({"fusion": "single"}, "scorer"),
        ({"method": "divprune", "positions": "keep"}, "positions"),
        ({"method": "divprune", "budget": "flops:0.5"}, "budget"),
        ({"variant": "paper", "scorer": "cls"}, "variant"),
    ],
)
def test_server_is_refused_at_start(family, options, word):
    with pytest.raises(prunekit.PrunekitError) as caught:
        Served(family, False, options)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_mrope_keeps_positions():
    family = outline_family(zoo.build("qwen2_5_vl").config)
    pruner = Served(family, True).pruner({"method": "divprune"})
    assert pruner.positions == "keep"
    with pytest.raises(prunekit.PrunekitError, match="positions=renumber"):
        Served(family, True, {"method": "divprune", "positions": "renumber"})


def test_a_family_without_known_patches_is_refused_for_methods_that_read_the_encoder():
    family = outline_family(zoo.build("aya_vision").config)
    Served(family, False, {"method": "divprune"})
    with pytest.raises(prunekit.PrunekitError, match="aya_vision"):
        Served(family, False, {"method": "fastervlm"})


@pytest.mark.parametrize("name", ["cdpruner", "mmtok", "divprune", "fastervlm", "visionzip", "average_pool"])
def test_which_methods_read_the_question(name):
    assert reads_question(prunekit.method(name)) == (name in ("cdpruner", "mmtok"))


def test_random_draws_by_the_prompt():
    assert reads_question(pruner_of({"scorer": "random"}))


def test_weights_stand_beside_the_model(tmp_path, family):
    config = family.config
    (tmp_path / "reducer.safetensors").touch()
    config.prunekit = {"reducer": {"name": "perceiver", "weights": "reducer.safetensors"}, "keep_ratio": 0.5}
    try:
        options = options_of_config(config, str(tmp_path))
    finally:
        del config.prunekit
    assert options["reducer"]["weights"] == str(tmp_path / "reducer.safetensors")


def test_a_component_that_reads_words_without_saying_so_is_refused(served):
    @prunekit.register("scorer", "counts_words")
    @dataclass
    class CountsWords(prunekit.Scorer):
        def score(self, view):
            return view.layout.text.sum(1, keepdim=True).float().expand(view.alive.shape)

    try:
        with pytest.raises(prunekit.PrunekitError, match="no prompt"):
            served.pruner(served.merged({"method": "fastervlm", "scorer": "counts_words"}))
        CountsWords.reads_question = True
        assert reads_question(served.pruner({"scorer": "counts_words", "selector": "topk"}))
    finally:
        del registry._classes["scorer"]["counts_words"]
