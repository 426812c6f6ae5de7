"""Compressors that replace the projector's output: shape, gradient, padding, weights on disk; pooling by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import prunekit
from zoo.tiny import make_batch, tiny_model

TRAINED = ("perceiver", "qformer")


def pruner(reducer, keep: int = 5, **options):
    first = prunekit.create("schedule", "one_shot", layer=0)
    made = prunekit.create("reducer", reducer, **options) if isinstance(reducer, str) else reducer
    return prunekit.Pruner("random", "single", first, "stride", made, keep_tokens=keep, positions="renumber")


def entering(model, run) -> torch.Tensor:
    """What enters the attention block of layer 0."""
    caught = {}
    hook = model.get_decoder().layers[0].input_layernorm.register_forward_pre_hook(lambda m, a: caught.update(x=a[0]))
    run()
    hook.remove()
    return caught["x"]


@pytest.mark.parametrize("seed", range(4))
def test_average_pool_against_loops(seed):
    g = torch.Generator().manual_seed(seed)
    tokens, alive = torch.randn(3, 23, 4, generator=g), torch.rand(3, 23, generator=g) < 0.8
    kept = alive & (torch.rand(3, 23, generator=g) < 0.3)
    kept[:, 0] = alive[:, 0] = True
    pool = prunekit.create("reducer", "average_pool")
    pooled = pool.reduce(tokens=tokens, sizes=torch.ones(3, 23), kept=kept, alive=alive)
    got, sizes = pooled.tokens, pooled.sizes
    for b in range(3):
        places, slots = alive[b].nonzero()[:, 0].tolist(), kept[b].nonzero()[:, 0].tolist()
        runs = [[] for _ in slots]
        for n, place in enumerate(places):
            runs[n * len(slots) // len(places)].append(tokens[b, place].double().numpy())
        for slot, run in zip(slots, runs, strict=True):
            assert np.abs(got[b, slot].double().numpy() - np.mean(run, axis=0)).max() < 1e-5
            assert float(sizes[b, slot]) == pytest.approx(len(places) / len(slots))


def test_average_pool_is_a_method_and_the_decoder_sees_the_means():
    model, batch = tiny_model("llava"), make_batch("llava", "left")
    with torch.no_grad():
        dense = entering(model, lambda: model(**batch.inputs))
        with prunekit.method("average_pool", keep_tokens=4)(model) as trace:
            pooled = entering(model, lambda: model(**batch.inputs))
    text = (batch.mask & ~batch.visual).sum(1)
    assert trace.tokens_per_layer[0].tolist() == (text + 4).tolist()
    for b in range(3):
        image = dense[b][batch.visual[b]]
        before = int((batch.mask[b] & ~batch.visual[b]).nonzero()[:, 0].lt(batch.visual[b].nonzero()[0, 0]).sum())
        start = pooled.shape[1] - int(text[b]) - 4 + before
        assert (pooled[b, start : start + 4] - image.view(4, 4, -1).mean(1)).abs().max() < 1e-5


@pytest.mark.parametrize("name", TRAINED)
class TestTrained:
    @pytest.mark.parametrize("padding", ["none", "left"])
    def test_shape_and_gradient(self, name, padding):
        model, batch = tiny_model("llava"), make_batch("llava", padding)
        made = pruner(name, queries=5, layers=2, heads=4)
        with pytest.warns(UserWarning, match=f"'{name}' has no weights file"), made(model) as trace:
            logits = model(**batch.inputs).logits
        torch.nn.functional.cross_entropy(logits[:, -1], torch.tensor([3, 4, 5])).backward()
        module = made.reducer.module(32)
        assert logits.shape == (*batch.ids.shape, 96) and trace.cuts[-1].kept.sum(1).tolist() == [5, 5, 5]
        for parameter_name, parameter in module.named_parameters():
            bias_of_keys = parameter_name.endswith("in_proj_bias")  # a part of it cancels in the softmax
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
            assert bias_of_keys or parameter.grad.abs().max() > 0, parameter_name

    def test_a_step_of_training_lowers_the_loss(self, name):
        model, batch = tiny_model("llava"), make_batch("llava")
        made = pruner(name, queries=5, heads=4)
        optimiser = torch.optim.SGD(made.reducer.module(32).parameters(), lr=0.05)
        losses = []
        with made(model):
            for _ in range(4):
                logits = model(**batch.inputs).logits[:, -1]
                loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4, 5]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_padding_and_other_samples_change_nothing(self, name):
        g = torch.Generator().manual_seed(0)
        tokens, alive = torch.randn(3, 12, 16, generator=g), torch.arange(12) < torch.tensor([[12], [7], [3]])
        reducer = prunekit.create("reducer", name, queries=4, heads=4)
        with torch.no_grad():
            together = reducer.compress(tokens, alive, torch.tensor([4, 4, 3]))
            for b, n in enumerate((12, 7, 3)):
                alone = reducer.compress(tokens[b : b + 1, :n], alive[b : b + 1, :n], torch.tensor([3]))
                assert (together[b] - alone[0]).abs().max() < 1e-5
            other = reducer.compress(tokens.flip(-1), alive, torch.tensor([4, 4, 3]))
        assert together.shape == (3, 4, 16) and (other - together).abs().max() > 1e-3

    def test_the_seed_makes_the_module(self, name):
        modules = [prunekit.create("reducer", name, heads=4, seed=seed).module(16) for seed in (1, 1, 2)]
        assert torch.equal(modules[0].queries, modules[1].queries)
        assert not torch.equal(modules[0].queries, modules[2].queries)

    def test_a_sample_without_an_image_leaves_no_nan(self, name):
        reducer = prunekit.create("reducer", name, queries=4, heads=4)
        tokens, alive = torch.randn(2, 6, 16, requires_grad=True), torch.zeros(2, 6, dtype=torch.bool)
        alive[0] = True
        reducer.compress(tokens, alive, torch.tensor([2, 0]))[0].sum().backward()
        assert tokens.grad.isfinite().all()

    def test_what_is_saved_loads_again(self, name, tmp_path):
        made = pruner(name, queries=5, heads=4)
        with torch.no_grad():
            made.reducer.module(32).queries.add_(1.0)
        made.save(tmp_path)
        again = prunekit.Pruner.load(tmp_path)
        assert again.reducer.weights == str(tmp_path / "reducer.safetensors")
        assert torch.equal(again.reducer.module(32).queries, made.reducer.module(32).queries)
        again.save(tmp_path / "copy")
        assert (tmp_path / "copy" / "reducer.safetensors").exists()

    def test_more_tokens_than_queries(self, name):
        model, batch = tiny_model("llava"), make_batch("llava")
        with torch.no_grad(), pruner(name, keep=6, queries=5)(model), pytest.raises(ValueError, match="has 5 queries"):
            model(**batch.inputs)

    def test_weights_that_do_not_fit(self, name, tmp_path):
        with pytest.raises(ValueError, match="no file"):
            prunekit.create("reducer", name, weights=str(tmp_path / "no.safetensors"))
        save_file({"queries": torch.zeros(2, 2)}, str(tmp_path / "w.safetensors"))
        reducer = prunekit.create("reducer", name, heads=4, weights=str(tmp_path / "w.safetensors"))
        with pytest.raises(ValueError, match="does not fit this module") as caught:
            reducer.module(16)
        assert "\n" not in str(caught.value)

    def test_heads_that_do_not_divide_the_width(self, name):
        with pytest.raises(ValueError, match="7 heads"):
            prunekit.create("reducer", name, heads=7).module(32)
