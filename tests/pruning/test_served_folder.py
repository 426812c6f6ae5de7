"""``Pruner.save(folder, model=...)``: what is written, without vLLM."""

import json

import pytest
import torch

import prunekit
from prunekit.models import EMBEDDED, load_model


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def test_only_two_entries_of_the_config_change(tmp_path):
    prunekit.method("divprune").save(tmp_path / "pruned", model=EMBEDDED["mini"])
    before, after = read_config(EMBEDDED["mini"]), read_config(tmp_path / "pruned")
    assert {key for key in after if before.get(key) != after[key]} == {"architectures", "prunekit"}
    assert prunekit.Pruner.load(tmp_path / "pruned" / "prunekit").describe() == prunekit.method("divprune").describe()


def test_transformers_loads_the_dense_model(tmp_path):
    loaded = load_model("mini", dtype="float32")
    prunekit.method("divprune").save(tmp_path, model=loaded.model, processor=loaded.processor)
    again = load_model(str(tmp_path), dtype="float32")
    ids = torch.randint(5, 50, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, loaded.model(ids).logits, atol=1e-6, rtol=0)


def test_weights_of_a_component_stand_apart(tmp_path):
    reducer = prunekit.create("reducer", "perceiver", queries=8, layers=1, heads=2)
    reducer.module(16)
    pruner = prunekit.Pruner("random", "single", "input", "stride", reducer, keep_tokens=8, positions="renumber")
    pruner.save(tmp_path / "pruned", model=EMBEDDED["mini"])
    options = read_config(tmp_path / "pruned")["prunekit"]
    assert options["reducer"]["weights"] == "prunekit/reducer.safetensors"
    assert [file.name for file in (tmp_path / "pruned").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "pruned" / "prunekit" / "reducer.safetensors").is_file()


def test_refusals(tmp_path):
    pruner = prunekit.method("divprune")
    with pytest.raises(prunekit.PrunekitError, match=r"no config\.json"):
        pruner.save(tmp_path / "a", model=tmp_path)
    pruner.save(tmp_path / "b", model=EMBEDDED["mini"])
    with pytest.raises(prunekit.PrunekitError, match="own folder"):
        pruner.save(tmp_path / "b", model=tmp_path / "b")
    model = load_model("mini").model
    model.config.name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(prunekit.PrunekitError, match="no processor"):
        pruner.save(tmp_path / "c", model=model)
