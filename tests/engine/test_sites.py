"""Cuts at the input and in the encoder: removal equals masking, what scorers see, what is saved, what is refused."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import prunekit
import zoo
from commands import arguments, run_main
from hand_vision import entering, exact_batch, exact_model, looked, project, read, run, siglip_model
from prunekit.families import make_family
from prunekit.families.vision import vision_of
from reference import dense_with_hidden_keys, hidden_keys
from zoo.tiny import FAMILIES, PADDINGS, make_batch, tiny_model

TOLERANCE = 1e-4


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.inputs).logits


def encoder(**options):
    return prunekit.create("schedule", "encoder", **options)


def pruned(model, batch, pruner, new=3):
    with torch.no_grad(), pruner(model) as trace:
        prompt = model(**batch.inputs).logits
        made = model.generate(**batch.inputs, max_new_tokens=new, do_sample=False)
    return prompt, made[:, batch.ids.shape[1] :], trace


class TestInput:
    @pytest.mark.parametrize(("family", "padding", "attn"), itertools.product(FAMILIES, PADDINGS, ("eager", "sdpa")))
    def test_removal_equals_masking(self, family, padding, attn):
        """All decoder layers, prompt and generation; none of what went reaches layer 0."""
        model, batch = tiny_model(family, attn), make_batch(family, padding, seed=len(attn))
        pruner = prunekit.Pruner("cls", "single", "input", keep_ratio=0.3)
        prompt, tokens, trace = pruned(model, batch, pruner)
        assert [(cut.site, cut.layer) for cut in trace.cuts] == [("input", 0)]
        assert trace.cuts[0].kept.sum(1).tolist() == [max(1, round(0.3 * int(n))) for n in batch.visual.sum(1)]
        hidden, reference = hidden_keys(batch, trace.cuts), tiny_model(family, "eager")
        expected, _, _ = dense_with_hidden_keys(reference, batch, hidden)
        _, expected_tokens, _ = dense_with_hidden_keys(reference, batch, hidden, new=3)
        text = batch.mask & ~batch.visual
        assert (prompt - expected)[text].abs().max() < TOLERANCE
        assert (logits(reference, batch) - expected)[text].abs().max() > 1e-2
        assert torch.equal(tokens, expected_tokens)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("name", ["visionzip", "prumerge", "vispruner", "pooling", "cdpruner"])
    def test_keep_ratio_one_changes_nothing(self, family, name):
        model, batch = tiny_model(family), make_batch(family, "left")
        selector = {"prumerge": {"selector": "topk"}}.get(name, {})
        with torch.no_grad(), prunekit.method(name, keep_ratio=1.0, positions="keep", **selector)(model):
            assert (model(**batch.inputs).logits - logits(tiny_model(family), batch)).abs().max() <= 1e-6

    def test_beams_and_returned_sequences(self):
        """Samples are repeated after the encoder has run."""
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        options = dict(max_new_tokens=3, num_beams=3, num_return_sequences=2, do_sample=False)
        with torch.no_grad(), prunekit.method("visionzip", keep_ratio=0.3)(model):
            together = model.generate(**batch.inputs, **options)[:, batch.ids.shape[1] :]
            for row in range(3):
                ids = batch.ids[row][batch.mask[row]][None]
                pixels = batch.inputs["pixel_values"][row : row + 1]
                alone = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **options
                )
                assert torch.equal(together[2 * row : 2 * row + 2], alone[:, ids.shape[1] :])

    def test_several_images_and_none(self):
        """Rows of the encoder belong to placeholders in order, however many a sample has."""
        from zoo.tiny import two_images_and_none

        model, batch = tiny_model("llava"), two_images_and_none()
        prompt, _, trace = pruned(model, batch, prunekit.Pruner("cls", "single", "input", keep_ratio=0.25))
        assert trace.cuts[0].kept.sum(1).tolist() == [8, 4, 0]
        images = run(exact_model("clip"), batch.inputs["pixel_values"].double())
        scores = [looked(exact_model("clip"), image) for image in images]
        assert np.abs(trace.cuts[0].scores[0].numpy() - np.concatenate(scores[:2])).max() < 1e-5
        assert np.abs(trace.cuts[0].scores[1, :16].numpy() - scores[2]).max() < 1e-5
        expected, _, _ = dense_with_hidden_keys(tiny_model("llava", "eager"), batch, hidden_keys(batch, trace.cuts))
        assert (prompt - expected)[batch.mask & ~batch.visual].abs().max() < TOLERANCE


class TestView:
    """``view.vision`` against the encoder run by hand, or the model's own packing."""

    def seen(self, model, batch):
        found = {}

        @dataclass
        class Watch(prunekit.Scorer):
            uses_vision = True

            def score(self, view):
                vision = view.vision
                found.update(
                    features=vision.features, keys=vision.keys(), attention=vision.attention(), cls=vision.cls,
                    hidden=view.visual(view.hidden_states), exists=vision.exists, places=vision.places,
                )  # fmt: skip
                return vision.attention()

        with torch.no_grad(), prunekit.Pruner(Watch(), "single", "input")(model):
            model(**batch.inputs)
        return found

    @pytest.mark.parametrize("kind", ["clip", "siglip"])
    def test_plain_encoders(self, kind):
        model, batch = exact_model(kind), exact_batch(make_batch("llava", "left"))
        found = self.seen(model, batch)
        for b, image in enumerate(run(model, batch.inputs["pixel_values"])):
            first, block = int(kind == "clip"), -2 if kind == "clip" else -1
            assert np.abs(found["features"][b].numpy() - read(model, image)).max() < 1e-5
            assert np.abs(found["keys"][b].numpy() - image.keys[block][:, first:].transpose(1, 0, 2)).max() < 1e-5
            assert np.abs(found["attention"][b].numpy() - looked(model, image)).max() < 1e-6
            assert np.abs(found["hidden"][b].numpy() - project(model, read(model, image))).max() < 1e-5
            if kind == "clip":
                assert np.abs(found["cls"][b].numpy() - image.inputs[block][0]).max() < 1e-5
        assert (found["cls"] is None) == (kind == "siglip")

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("padding", PADDINGS)
    def test_features_projected_are_what_enters_layer_0(self, family, padding):
        """On every family each visual token is paired with its own patches, tiles and newlines included."""
        model, batch = tiny_model(family), make_batch(family, padding)
        found, tower = self.seen(model, batch), vision_of(make_family(model))
        rows = found["features"]
        with torch.no_grad():
            made = tower.projector(rows.reshape(-1, rows.shape[-1] // tower.group)).reshape(*rows.shape[:2], -1)
        exists = found["exists"]
        assert (made - found["hidden"])[exists].abs().max() < 1e-5
        newlines = int(batch.visual.sum()) - int(exists.sum())
        assert (newlines > 0) == (family == "llava_next")

    @pytest.mark.parametrize("variant", ["plain", "two_images", "video"])
    @pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
    def test_packed_encoders(self, family, variant):
        """Also where rows are sorted by windows between patches and the merger's output; places are the raster's."""
        model, batch = zoo.build(family), zoo.batch(family, "left", variant=variant)
        found, tower = self.seen(model, batch), vision_of(make_family(model))
        rows = found["features"]
        with torch.no_grad():
            made = tower.projector(rows.reshape(-1, rows.shape[-1] // tower.group)).reshape(*rows.shape[:2], -1)
        assert (made - found["hidden"])[found["exists"]].abs().max() < 1e-5
        expected = []
        for t, h, w in batch.inputs["video_grid_thw" if variant == "video" else "image_grid_thw"].tolist():
            expected += [(r, c, h // 2, w // 2) for _ in range(t) for r in range(h // 2) for c in range(w // 2)]
        row, column, rows, columns, image = (x[found["exists"]].tolist() for x in found["places"])
        assert list(zip(row, column, rows, columns, strict=True)) == expected
        assert image == sorted(image)

    def test_an_image_of_qwen2_vl_attends_to_itself_alone(self):
        """Images stand in one packed sequence: attention received, by the eager weights of each image's chunk."""
        model, batch = tiny_model("qwen2_vl", "eager"), make_batch("qwen2_vl", "left")
        found, weights = self.seen(model, batch), []
        attention = model.model.visual.blocks[-1].attn
        import transformers.models.qwen2_vl.modeling_qwen2_vl as code

        original = code.eager_attention_forward

        def watch(module, *args, **kwargs):
            out = original(module, *args, **kwargs)
            if module is attention:
                weights.append(out[1])
            return out

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(code, "eager_attention_forward", watch)
            model(**batch.inputs)
        for b, chunk in enumerate(weights):
            expected = chunk[0].mean(0).mean(0).reshape(-1, 4).mean(1)
            assert (found["attention"][b, : len(expected)] - expected).abs().max() < 1e-6
        row, column, rows, columns, _ = found["places"]
        assert (rows[:, 0].tolist(), columns[:, 0].tolist()) == ([3, 2, 4], [4, 2, 2])
        assert row[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 and column[2, :8].tolist() == [0, 1] * 4

    def test_what_is_not_asked_for_is_not_noted(self):
        @dataclass
        class Silent(prunekit.Scorer):
            def score(self, view):
                return view.vision.attention()

        model = tiny_model("llava")
        with prunekit.Pruner(Silent(), "single", "input")(model), pytest.raises(ValueError, match="uses_vision = True"):
            logits(model, make_batch("llava"))


class TestEncoder:
    @pytest.mark.parametrize("kind", ["clip", "siglip"])
    def test_what_goes_is_gone_for_later_blocks(self, kind):
        """Removal inside the encoder, against an encoder run by hand on what stays; measured apart from the trace."""
        model, batch = exact_model(kind, "sdpa"), exact_batch(make_batch("llava"))
        first, lengths = int(kind == "clip"), []
        blocks = model.model.vision_tower.encoder.layers
        handles = [b.mlp.register_forward_pre_hook(lambda m, a: lengths.append(a[0].shape[1])) for b in blocks]
        found, trace = entering(model, batch, prunekit.Pruner("cls", "single", encoder(layers=[0, 1]), keep_ratio=0.25))
        for handle in handles:
            handle.remove()
        assert lengths[:3] == [8 + first, 4 + first, 4 + first]

        def step(block, image, keys, attention):
            if block < 2:
                mean = attention.mean(0)
                scores = mean[0] if kind == "clip" else mean.mean(0)
                ranked = sorted(range(first, len(scores)), key=lambda i: -scores[i])[: (8, 4)[block]]
                stays = [*range(first), *sorted(ranked)]
                image.x, image.patches = image.x[stays], [image.patches[i] for i in stays]

        for b, image in enumerate(run(model, batch.inputs["pixel_values"], step)):
            assert trace.cuts[1].kept[b].nonzero()[:, 0].tolist() == [p[0] for p in image.patches[first:]]
            assert np.abs(found[b] - project(model, image.x[first:])).max() < 1e-6
        assert trace.vision_tokens[:, 0].tolist() == [16 + first, 8 + first, 4 + first]
        assert trace.tokens_per_layer[0].tolist() == [14, 14, 14]

    @pytest.mark.parametrize("padding", PADDINGS)
    @pytest.mark.parametrize("attn", ["eager", "sdpa"])
    def test_the_decoder_equals_a_masked_one(self, padding, attn):
        """Given the encoder's features, what went is hidden from all decoder layers, prompt and generation."""
        model, batch = tiny_model("llava", attn), make_batch("llava", padding)
        pruner = prunekit.Pruner("cls", "single", encoder(layers=[1]), keep_ratio=0.3)
        prompt, tokens, trace = pruned(model, batch, pruner)
        # A cut inside the last block that counts (1 of 3: the projector reads the second last) changes no feature.
        hidden = {0: hidden_keys(batch, trace.cuts)[1]}
        reference = tiny_model("llava", "eager")
        expected, _, _ = dense_with_hidden_keys(reference, batch, hidden)
        _, expected_tokens, _ = dense_with_hidden_keys(reference, batch, hidden, new=3)
        assert (prompt - expected)[batch.mask & ~batch.visual].abs().max() < TOLERANCE
        assert torch.equal(tokens, expected_tokens)

    @pytest.mark.parametrize("name", ["tome", "evit", "downsample"])
    def test_keep_ratio_one_changes_nothing(self, name):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        with prunekit.method(name, keep_ratio=1.0)(model):
            assert (logits(model, batch) - logits(tiny_model("llava"), batch)).abs().max() <= 1e-6

    @pytest.mark.parametrize("scorer", ["visual", "tome", "cls"])
    @pytest.mark.parametrize("fusion", ["single", "multi"])
    def test_scorers_of_the_decoder_work_there_too(self, scorer, fusion):
        model, batch = siglip_model(), make_batch("llava", "left")
        with torch.no_grad(), prunekit.Pruner(scorer, fusion, encoder(layers=[0, 2]), keep_ratio=0.25)(model) as trace:
            model(**batch.inputs)
        assert [cut.kept.sum(1).tolist() for cut in trace.cuts] == [[8] * 3, [4] * 3]

    def test_rollout_inside_the_encoder(self):
        """IVTP's stage in the ViT: the CLS row of the rollout of the blocks since the last cut."""
        model, batch = exact_model("clip"), exact_batch(make_batch("llava"))
        with torch.no_grad(), prunekit.Pruner("cls", "rollout", encoder(layers=[1]), keep_ratio=0.25)(model) as trace:
            model(**batch.inputs)
        for b, image in enumerate(run(model, batch.inputs["pixel_values"])):
            product = np.eye(17)
            for weights in image.attention[:2]:
                product = (0.5 * np.eye(17) + 0.5 * weights.mean(0)) @ product
            assert np.abs(trace.cuts[0].scores[b].numpy() - product[0, 1:]).max() < 1e-6


class TestSeveralSites:
    def test_vision_input_and_decoder_in_one_schedule(self):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        schedule = prunekit.create("schedule", "sites", vision=[0.5], at_input=True, decoder=[0.5])
        with torch.no_grad(), prunekit.Pruner("by_site", "single", schedule, keep_ratio=0.25)(model) as trace:
            prompt = model(**batch.inputs).logits
            tokens = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)[:, batch.ids.shape[1] :]
        assert [(c.site, c.layer) for c in trace.cuts] == [("vision", 1), ("input", 0), ("decoder", 3)]
        assert [c.kept.sum(1).tolist() for c in trace.cuts] == [[10] * 3, [6] * 3, [4] * 3]
        assert all((~a.kept & b.kept).sum() == 0 for a, b in itertools.pairwise(trace.cuts))
        gone = hidden_keys(batch, [trace.cuts[1], trace.cuts[2]])
        expected, _, _ = dense_with_hidden_keys(tiny_model("llava", "eager"), batch, gone)
        _, expected_tokens, _ = dense_with_hidden_keys(tiny_model("llava", "eager"), batch, gone, new=3)
        assert (prompt - expected)[batch.mask & ~batch.visual].abs().max() < TOLERANCE
        assert torch.equal(tokens, expected_tokens)

    @pytest.mark.parametrize(
        "words",
        [
            ("method=visionzip", "reducer=drop"),
            ("method=fastv", "schedule=input", "scorer=cls", "fusion=single"),
            ("scorer=by_site", "fusion=single", "schedule=sites", "schedule.vision=[0.5]", "schedule.decoder=[0.5]"),
        ],
    )
    def test_on_the_command_line(self, words, monkeypatch, tmp_path, model_folder):
        """Images are not encoded once for all questions where the encoder is looked into."""
        code, _, err = run_main(monkeypatch, *arguments(model_folder, tmp_path / "run", *words, "data.limit=3"))
        assert code == 0, err
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["prefill_ratio_includes_vision"] and metrics["flops_ratio"] < 0.8

    def test_a_schedule_without_any(self):
        with pytest.raises(ValueError, match="names no cut"):
            prunekit.create("schedule", "sites", vision=None, decoder=[])


class TestPromises:
    @pytest.mark.parametrize("name", ["visionzip", "tome", "evit", "downsample"])
    @pytest.mark.parametrize("fails", [False, True])
    def test_outside_the_block_the_model_is_as_before(self, name, fails):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        before = logits(model, batch)
        hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
        try:
            with prunekit.method(name, keep_tokens=4)(model):
                assert not torch.equal(logits(model, batch), before)
                if fails:
                    raise KeyError("anything")
        except KeyError:
            pass
        assert torch.equal(logits(model, batch), before)
        assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
        assert "pack_image_features" not in vars(model.model)

    def test_tiles_leave_no_method_behind(self):
        model, batch = tiny_model("llava_next"), make_batch("llava_next")
        before = logits(model, batch)
        with prunekit.method("visionzip", keep_ratio=0.3)(model):
            assert "pack_image_features" in vars(model.model)
            logits(model, batch)
        assert "pack_image_features" not in vars(model.model) and torch.equal(logits(model, batch), before)

    def test_threads_do_not_mix(self):
        model = tiny_model("llava")
        batches = [make_batch("llava", "left", seed=s) for s in range(3)]
        found: dict[int, torch.Tensor] = {}
        with prunekit.method("tome", keep_ratio=0.5)(model):
            alone = [logits(model, b) for b in batches]
            threads = [
                threading.Thread(target=lambda i=i: found.update({i: logits(model, batches[i])})) for i in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(torch.equal(found[i], alone[i]) for i in range(3))

    def test_a_sample_does_not_depend_on_its_batch(self):
        """Nor on an earlier one, whose features must not linger."""
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        for name in ("visionzip", "prumerge", "vispruner", "divprune", "cdpruner", "tome", "evit", "pooling"):
            with prunekit.method(name, keep_tokens=4)(model) as trace, torch.no_grad():
                model(**batch.inputs)
                together = trace.cuts[-1].kept.clone()
                for row in range(3):
                    ids = batch.ids[row][batch.mask[row]][None]
                    model(input_ids=ids, pixel_values=batch.inputs["pixel_values"][row : row + 1])
                    assert torch.equal(trace.cuts[-1].kept[0], together[row]), name


class TestTraining:
    @pytest.mark.parametrize("name", ["visionzip", "prumerge", "vispruner", "tome", "evit", "pooling", "downsample"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_gradients_reach_the_encoder(self, name):
        model, batch = tiny_model("llava"), make_batch("llava", "left")
        labels = batch.ids.masked_fill(batch.visual | ~batch.mask, -100)
        with prunekit.method(name, keep_tokens=4)(model.train()):
            model(**batch.inputs, labels=labels).loss.backward()
        for module in (model.model.vision_tower.embeddings, model.model.multi_modal_projector):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert (
                gradients and all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)
            )

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
