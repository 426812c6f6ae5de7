"""Cuts before the decoder: gradients, what is refused, and whole runs from the command line."""

from __future__ import annotations

import json

import pytest
import torch

import prunekit
import zoo
from commands import arguments, run_main
from prunekit.families import make_family
from zoo.tiny import make_batch, tiny_model


def encoder(**options):
    return prunekit.create("schedule", "encoder", **options)


class TestTraining:
    @pytest.mark.parametrize("name", ["visionzip", "prumerge", "vispruner", "tome", "evit", "pooling", "downsample"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_gradients_reach_the_encoder(self, name):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        labels = batch.ids.masked_fill(batch.visual | ~batch.mask, -100)
        with prunekit.method(name, keep_tokens=4)(model.train()):
            model(**batch.inputs, labels=labels).loss.backward()
        for module in (model.model.vision_tower.embeddings, model.model.multi_modal_projector):
            found = [p.grad for p in module.parameters() if p.grad is not None]
            assert found and all(g.isfinite().all() for g in found) and any(g.abs().sum() > 0 for g in found)

    def test_checkpointing_where_tokens_go_inside_is_refused(self):
        model, batch = tiny_model("llava").train(), make_batch("llava")
        model.gradient_checkpointing_enable()
        with prunekit.method("tome")(model), pytest.raises(ValueError, match="gradient checkpointing"):
            model(**batch.inputs)
        with prunekit.method("visionzip", keep_ratio=0.5)(model):
            model(**batch.inputs).logits.sum().backward()


class TestRefusals:
    """In one line, at ``apply`` where the model tells, with nothing left on it."""

    @pytest.mark.parametrize(
        ("family", "options", "match"),
        [
            ("qwen2_vl", {"schedule": "encoder"}, "joins 4 neighbouring patches"),
            ("llava_next", {"schedule": "encoder"}, "newline tokens"),
            ("llava", {"scorer": "instruction", "schedule": "encoder"}, "cannot work at site=vision"),
            ("llava", {"scorer": "instruction", "schedule": "input"}, "cannot work at site=input"),
            ("llava", {"scorer": "random", "schedule": "encoder"}, "cannot work at site=vision"),
            ("llava", {"schedule": "encoder", "selector": "outliers"}, "inside an encoder all keep one"),
            ("llava", {"schedule": {"layers": [2]}}, "rising blocks of 0..1"),
            ("qwen2_vl", {"schedule": "input", "positions": "renumber"}, "positions=renumber"),
            ("qwen2_vl", {"schedule": "downsample"}, "max_pixels"),
        ],
    )
    def test_what_a_model_cannot_do(self, family, options, match):
        options = dict(options)
        if isinstance(options["schedule"], dict):
            options["schedule"] = encoder(**options["schedule"])
        model = tiny_model(family)
        with pytest.raises(ValueError, match=match) as caught:
            prunekit.Pruner(options.pop("scorer", "cls"), "single", **options).apply(model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 180
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_an_encoder_that_is_not_known(self):
        for name, match in (("aya_vision", "is not known"), ("ovis2", "is not known"), ("vipllava", "is not known")):
            with pytest.raises(ValueError, match=match):
                prunekit.Pruner("cls", "single", "input").apply(zoo.build(name))

    def test_features_made_before_are_refused(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad():
            features = model.get_image_features(batch.inputs["pixel_values"], return_dict=True)
            inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"}
            with prunekit.method("visionzip")(model), pytest.raises(ValueError, match="give it pixels"):
                model(**inputs, mm_encoder_outputs={"image": features})

    def test_applying_twice(self):
        model = tiny_model("llava")
        handle = prunekit.method("tome").apply(model)
        with pytest.raises(ValueError, match="pruned already"):
            prunekit.method("visionzip").apply(model)
        handle.remove()
        prunekit.method("visionzip").apply(model).remove()


class TestRuns:
    """Which rows of the encoder belong to which placeholders must be known."""

    def test_left_over_features_are_not_taken_for_the_batchs(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        with torch.no_grad(), prunekit.method("visionzip", keep_tokens=5)(model) as trace:
            model(**batch.inputs)
            kept = trace.cuts[0].kept.clone()
            model.get_image_features(torch.randn_like(batch.inputs["pixel_values"]))
            model(**batch.inputs)  # encodes its own
            assert torch.equal(trace.cuts[0].kept, kept)
            model.get_image_features(torch.randn_like(batch.inputs["pixel_values"]))
            with pytest.raises(ValueError, match="in 2 runs"):
                model.generate(**batch.inputs, max_new_tokens=2)
            model.generate(**batch.inputs, max_new_tokens=2)
            assert torch.equal(trace.cuts[0].kept, kept)


def test_what_the_encoder_saves_is_counted(monkeypatch, tmp_path, model_folder):
    """``flops_ratio_with_vision`` against sums over layers by hand."""
    from prunekit.cost import layer_macs
    from prunekit.models import load_model

    words = ("method=evit", "keep_ratio=0.25", "data.limit=3")
    code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "run", *words))
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    family = make_family(load_model(str(model_folder)).model)
    vision, text = family.config.vision_config, family.text_config
    dense = pruned = 0.0
    for row in rows:
        whole = row["vision_tokens"][0]
        for tokens in row["vision_tokens"]:
            n = torch.tensor([whole, tokens])
            macs = layer_macs(n, vision.hidden_size, vision.intermediate_size, "fastv")
            dense, pruned = dense + float(macs[0]), pruned + float(macs[1])
        for tokens in row["tokens_per_layer"]:
            n = torch.tensor([row["prompt_tokens"], tokens])
            macs = layer_macs(n, text.hidden_size, text.intermediate_size)
            dense, pruned = dense + float(macs[0]), pruned + float(macs[1])
    # The patch embedding and the projector, which both sides hold, are what is left.
    rest = (metrics["flops_ratio_with_vision"] * dense - pruned) / (1 - metrics["flops_ratio_with_vision"])
    assert 0 < rest < 0.2 * dense
    assert rows[0]["vision_tokens"][0] > rows[0]["vision_tokens"][-1]
