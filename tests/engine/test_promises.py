"""What holds around a pruned block: the model as before, independence, and refusals in one line."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from transformers import StaticCache

import prunekit
from zoo.tiny import FAMILIES, make_batch, tiny_model

PRUNER = dict(keep_ratio=0.3)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.inputs).logits


def hook_count(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fails", [False, True])
def test_outside_the_block_the_model_is_as_before(family, fails):
    model, batch = tiny_model(family), make_batch(family, "left")
    before, configs = logits(model, batch), [id(layer.self_attn.config) for layer in model.get_decoder().layers]
    hooks = hook_count(model)  # transformers puts some of its own on at the first forward
    try:
        with prunekit.Pruner(**PRUNER)(model):
            inside = logits(model, batch)
            if fails:
                raise KeyError("anything")
    except KeyError:
        pass
    assert torch.equal(logits(model, batch), before)
    assert not torch.equal(inside, before)
    assert hook_count(model) == hooks
    assert [id(layer.self_attn.config) for layer in model.get_decoder().layers] == configs


def test_an_error_inside_a_forward_leaves_nothing_behind():
    @dataclass
    class Broken(prunekit.Scorer):
        uses_attention = True

        def score(self, view):
            raise RuntimeError("broken scorer")

    model, batch = tiny_model("llava"), make_batch("llava")
    before = logits(model, batch)
    with prunekit.Pruner(Broken(), schedule="one_shot")(model):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"Broken\.score failed at layer 0: RuntimeError: broken scorer"):
                logits(model, batch)
    assert torch.equal(logits(model, batch), before)
    with prunekit.Pruner(**PRUNER)(model):
        logits(model, batch)


def test_apply_and_remove():
    model, batch = tiny_model("llava"), make_batch("llava")
    before = logits(model, batch)
    handle = prunekit.Pruner(**PRUNER).apply(model)
    with pytest.raises(ValueError, match="pruned already"):
        prunekit.Pruner(**PRUNER).apply(model)
    assert not torch.equal(logits(model, batch), before)
    assert len(handle.trace.cuts) == 2
    handle.remove()
    handle.remove()
    assert torch.equal(logits(model, batch), before)


def test_two_models_that_share_a_config_and_a_thread_beside_stay_untouched():
    model, batch = tiny_model("llava"), make_batch("llava")
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    before = logits(twin, batch)
    found = []
    with prunekit.Pruner(**PRUNER)(model):
        pruned = logits(model, batch)
        thread = threading.Thread(target=lambda: found.append(logits(twin, batch)))
        thread.start()
        for _ in range(3):
            assert torch.equal(logits(model, batch), pruned)
        thread.join()
        assert torch.equal(logits(twin, batch), before)
        assert model.config.text_config._attn_implementation == "sdpa"
    assert torch.equal(found[0], before)


def test_threads_on_one_pruned_model_do_not_mix():
    model = tiny_model("llava")
    batches = [make_batch("llava", "left", seed=s) for s in range(4)]
    found: dict[int, torch.Tensor] = {}
    with prunekit.Pruner(**PRUNER)(model):
        alone = [logits(model, b) for b in batches]
        threads = [threading.Thread(target=lambda i=i: found.update({i: logits(model, batches[i])})) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(4))


def test_a_pruned_cache_is_refused_without_its_pruner_and_continues_with_it():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    more = torch.randint(2, 80, (3, 4))
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    handle = prunekit.Pruner(**PRUNER).apply(model, prompt="all")
    with torch.no_grad():
        cache = model(**batch.inputs).past_key_values
        follow = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
        whole = {**batch.inputs, "input_ids": torch.cat([batch.ids, more], 1), "attention_mask": mask}
        cache = model(**batch.inputs).past_key_values
    handle.remove()
    with torch.no_grad(), pytest.raises(ValueError, match="pruned by prunekit"):
        model(input_ids=more, attention_mask=mask, past_key_values=cache)
    assert follow.shape[1] == 4 and whole["input_ids"].shape[1] == mask.shape[1]
    other = prunekit.Pruner(**PRUNER).apply(model)
    with torch.no_grad(), pytest.raises(ValueError, match="pruned by prunekit"):
        model(input_ids=more, attention_mask=mask, past_key_values=cache)
    other.remove()


def test_a_second_turn_equals_masking():
    """More text on a returned cache, several tokens at a time."""
    from reference import dense_with_hidden_keys, hidden_keys
    from zoo.tiny import tiny_batch

    model, batch = tiny_model("llava"), make_batch("llava", "left")
    more = torch.randint(2, 80, (3, 4), generator=torch.Generator().manual_seed(1))
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    with torch.no_grad(), prunekit.Pruner(**PRUNER)(model, prompt="all") as trace:
        cache = model(**batch.inputs).past_key_values
        follow = model(input_ids=more, attention_mask=mask, past_key_values=cache).logits
    long = tiny_batch({**batch.inputs, "input_ids": torch.cat([batch.ids, more], 1), "attention_mask": mask})
    reference = tiny_model("llava", "eager")
    expected, _, _ = dense_with_hidden_keys(reference, long, hidden_keys(long, trace.cuts))
    assert (follow - expected[:, -4:]).abs().max() < 1e-4


class TestRefusals:
    """Each in one line that names what is wrong."""

    def refused(self, match, call):
        with pytest.raises(ValueError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)

    def test_budgets(self):
        for ratio in (0, -0.5, 1.5, float("nan"), "half", True):
            self.refused("keep_ratio", lambda r=ratio: prunekit.Pruner(keep_ratio=r))
        for tokens in (0, -3, 2.5, "many"):
            self.refused("keep_tokens", lambda t=tokens: prunekit.Pruner(keep_tokens=t))
        self.refused("exclude", lambda: prunekit.Pruner(keep_ratio=0.5, keep_tokens=4))

    def test_names(self):
        self.refused("Did you mean 'instruction'", lambda: prunekit.Pruner(scorer="instrution"))
        self.refused("Did you mean 'rollout'", lambda: prunekit.create("fusion", "rolout"))
        self.refused("Did you mean 'layer'", lambda: prunekit.create("schedule", "one_shot", leyer=3))
        self.refused("kind of component", lambda: prunekit.create("scorers", "random"))
        self.refused("fastv", lambda: prunekit.method("fastvv"))
        self.refused("positions", lambda: prunekit.Pruner(positions="shuffle"))
        self.refused("scorer must be", lambda: prunekit.Pruner(scorer=3))

    def test_depth(self):
        model = tiny_model("llava")
        schedule = prunekit.create("schedule", "one_shot", layer=6)
        self.refused("layer 6 is not in 0..5", lambda: prunekit.Pruner(schedule=schedule).apply(model))
        schedule = prunekit.create("schedule", "one_shot", layer=0)
        self.refused("no layer lies before", lambda: prunekit.Pruner(schedule=schedule).apply(model))
        assert hook_count(model) == 0

    def test_compositions(self):
        self.refused("reads none", lambda: prunekit.Pruner(scorer="tome", fusion="rollout"))
        bad = dict(layers=[2, 4], ratios=[0.5])
        self.refused("ratios has 1", lambda: prunekit.create("schedule", "progressive", **bad))
        schedule = prunekit.create("schedule", "progressive", ratios=[0.5, 0.5])
        self.refused("multiply to 0.25", lambda: prunekit.Pruner(schedule=schedule, keep_ratio=0.5))
        assert prunekit.Pruner(schedule=schedule).keep_ratio == 0.25

    def test_models(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        text = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=32,
                                            num_attention_heads=2))  # fmt: skip
        self.refused("llama", lambda: prunekit.Pruner().apply(text))
        model = tiny_model("qwen2_vl")
        self.refused("renumber", lambda: prunekit.Pruner(positions="renumber").apply(model))

    def test_inputs(self):
        model, batch = tiny_model("llava"), make_batch("llava")
        with prunekit.Pruner()(model), torch.no_grad():
            text = torch.tensor([[3, 4, 5]])
            self.refused("no placeholder", lambda: model(input_ids=text, pixel_values=batch.inputs["pixel_values"]))
            self.refused("visual=mask", lambda: model(inputs_embeds=torch.randn(1, 4, 32)))
            static = StaticCache(model.config.get_text_config(), max_cache_len=64)
            self.refused("StaticCache", lambda: model(**batch.inputs, past_key_values=static))
            cache = model(**batch.inputs).past_key_values
            self.refused("new images", lambda: model(**batch.inputs, past_key_values=cache))

    def test_nan_scores_name_the_cut_and_the_samples(self):
        @dataclass
        class Nan(prunekit.Scorer):
            def score(self, view):
                scores = torch.zeros(view.alive.shape)
                scores[1, 3] = float("nan")
                return scores

        model, batch = tiny_model("llava"), make_batch("llava")
        with prunekit.Pruner(Nan(), "single", "one_shot")(model), torch.no_grad():
            self.refused(r"layer 2, samples \[1\]", lambda: model(**batch.inputs))


def test_save_and_load(tmp_path):
    from safetensors.torch import save_file

    save_file({"weights": torch.rand(6)}, str(tmp_path / "w.safetensors"))
    fusion = prunekit.create("fusion", "learned", weights=str(tmp_path / "w.safetensors"))
    pruner = prunekit.Pruner("instruction", fusion, "one_shot", reducer="merge", keep_tokens=5, positions="renumber")
    pruner.save(tmp_path / "saved")
    (tmp_path / "w.safetensors").unlink()
    loaded = prunekit.Pruner.load(tmp_path / "saved")
    model, batch = tiny_model("llava"), make_batch("llava")
    assert loaded.keep_tokens == 5 and loaded.positions == "renumber" and loaded.reducer == pruner.reducer
    with loaded(model) as trace:
        logits(model, batch)
    assert trace.cuts[0].kept.sum(1).tolist() == [5, 5, 5]
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} == {".yaml", ".safetensors"}
