"""The part of the lmms-eval model that needs no lmms-eval; tools/measure_lmms.py runs the whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

import prunekit
from paths import ROOT
from prunekit.errors import PrunekitError
from prunekit.lmms import pruner_of, split


def same(a, b):
    return a.describe() == b.describe()


def test_model_args_describe_the_pruner():
    assert same(pruner_of({}), prunekit.Pruner())
    assert same(pruner_of({"method": "fastv", "keep_ratio": 0.25}), prunekit.method("fastv", keep_ratio=0.25))
    assert same(pruner_of({"keep_tokens": 64, "scorer": "visual"}), prunekit.Pruner("visual", keep_tokens=64))
    one_shot = prunekit.create("schedule", "one_shot", layer=3)
    assert same(pruner_of({"schedule": "one_shot", "schedule.layer": 3}), prunekit.Pruner(schedule=one_shot))
    layers = prunekit.create("schedule", "progressive", layers=[2, 4])
    assert same(pruner_of({"schedule.layers": [2, 4]}), prunekit.Pruner(schedule=layers))
    other = pruner_of({"method": "fastv", "schedule.layer": 3})
    assert (
        other.describe()["schedule"]["layer"] == 3
        and other.describe()["scorer"] == (prunekit.method("fastv").describe()["scorer"])
    )
    assert other.name == "fastv"


def test_a_saved_pruner(tmp_path):
    made = prunekit.Pruner("visual", keep_ratio=0.3)
    made.save(tmp_path)
    assert same(pruner_of({"pruner": str(tmp_path)}), made)
    with pytest.raises(PrunekitError, match="excludes keep_ratio"):
        pruner_of({"pruner": str(tmp_path), "keep_ratio": 0.5})


def test_the_models_arguments_are_told_from_the_pruners():
    given = {"pretrained": "x", "method": "fastv", "schedule.layers": "[2,4]", "device": "cpu"}
    own, rest = split(given, ("self", "pretrained", "device", "kwargs"))
    assert own == {"method": "fastv", "schedule.layers": [2, 4]} and rest == {"pretrained": "x", "device": "cpu"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"method": "fastvv"}, "Did you mean 'fastv'"),
        ({"scorer": "instrution"}, "Did you mean 'instruction'"),
        ({"keep_ratio": 1.5}, "1.5"),
        ({"schedule.layr": 3}, "layr"),
        ({"variant.layer": 3}, "variant.layer"),
    ],
)
def test_bad_model_args(arguments, word):
    with pytest.raises(PrunekitError) as caught:
        pruner_of(arguments)
    assert word in str(caught.value)


def test_an_argument_that_nobody_knows():
    with pytest.raises(PrunekitError, match="Did you mean 'keep_ratio'"):
        split({"kep_ratio": 0.5}, ("pretrained",))


def test_prunekit_does_not_need_lmms_eval():
    code = "import sys, prunekit, prunekit.lmms; assert not [m for m in sys.modules if m.startswith('lmms_eval')]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
