"""ToMe and EViT on plain ViTs of timm, as both papers have them: what is computed, saved and mapped back."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

import prunekit
from hand_vision import cosine, softmax, split

MODELS = {
    "cls": {},
    "registers": dict(reg_tokens=2),
    "no_cls": dict(class_token=False, global_pool="avg"),
    "normed": dict(qk_norm=True, init_values=0.5),
}


def vit(kind: str = "cls", depth: int = 4):
    """A small plain ViT in float64, weights scaled up."""
    torch.manual_seed(0)
    options = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=depth, num_classes=5) | MODELS[kind]
    model = timm.models.vision_transformer.VisionTransformer(**options).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.mul_(6.0)
    return model


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(model, image, step, weigh):
    """Tokens [S, C] after all blocks, and which patches each stands for."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image[None]))))[0].detach().numpy()
    prefix = model.num_prefix_tokens
    size, patches = [1.0] * len(x), [[i - prefix] for i in range(len(x))]
    for number, block in enumerate(model.blocks):
        attention, heads = block.attn, block.attn.num_heads
        qkv = attention.qkv(block.norm1(torch.from_numpy(x))).detach()
        q, k, v = (split(part.numpy(), heads) for part in qkv.chunk(3, dim=-1))
        q, k = (
            attention.q_norm(torch.from_numpy(q)).detach().numpy(),
            attention.k_norm(torch.from_numpy(k)).detach().numpy(),
        )
        bias = np.log(size) if weigh else np.zeros(len(x))
        weights = np.stack(
            [[softmax(list(k[h] @ q[h, i] * attention.scale + bias)) for i in range(len(x))] for h in range(heads)]
        )
        mixed = torch.from_numpy(np.concatenate([weights[h] @ v[h] for h in range(heads)], axis=-1))
        x = x + block.ls1(attention.proj(mixed)).detach().numpy()
        x, size, patches = step(number, x, size, patches, k, weights, prefix)
        x = x + block.ls2(block.mlp(block.norm2(torch.from_numpy(x)))).detach().numpy()
    return model.norm(torch.from_numpy(x)).detach().numpy(), patches


def merging(r):
    def step(number, x, size, patches, keys, weights, prefix):
        metric = keys.mean(0)
        a, b = range(0, len(x), 2), [j for j in range(1, len(x), 2) if j >= prefix]
        match = {i: max(b, key=lambda j: cosine(metric[i], metric[j])) for i in a if i >= prefix}
        edges = sorted(match, key=lambda i: -cosine(metric[i], metric[match[i]]))[:r]
        x, size, patches = x.copy(), list(size), [list(p) for p in patches]
        for i in edges:
            j = match[i]
            x[j] = (x[i] * size[i] + x[j] * size[j]) / (size[i] + size[j])
            size[j] += size[i]
            patches[j] += patches[i]
        order = [i for i in range(len(x)) if i < prefix]
        order += [i for i in a if i >= prefix and i not in edges] + b
        return x[order], [size[i] for i in order], [patches[i] for i in order]

    return step


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("proportional", [True, False])
def test_tome(kind, proportional):
    model, image = vit(kind), pixels()
    schedule = prunekit.create("schedule", "every_block", r=3)
    reducer = prunekit.create("reducer", "bipartite", proportional=proportional)
    pruner = prunekit.method("tome", schedule=schedule, reducer=reducer, keep_ratio=0.25)
    with torch.no_grad(), pruner(model) as trace:
        out = model.forward_features(image)
        back = trace.unmerge(out)
    for b in range(2):
        expected, patches = by_hand(model, image[b], merging(3), proportional)
        assert np.abs(out[b].numpy() - expected).max() < 1e-6
        for token, members in zip(expected[model.num_prefix_tokens :], patches[model.num_prefix_tokens :], strict=True):
            assert np.abs(back[b, members].numpy() - token).max() < 1e-6
    prefix = model.num_prefix_tokens
    assert trace.vision_tokens[:, 0].tolist() == [16 + prefix, 13 + prefix, 10 + prefix, 7 + prefix]
    assert out.shape[1] == 4 + prefix and back.shape[1] == 16


@pytest.mark.parametrize("kind", ["cls", "no_cls"])
def test_evit(kind):
    """After the papers' counts: ceil(0.7 n) patches and a fused one, which is last."""
    model, image = vit(kind), pixels(1)

    def step(number, x, size, patches, keys, weights, prefix):
        if number not in (1, 2, 3):
            return x, size, patches
        scores = weights.mean(0)[0] if kind == "cls" else weights.mean(0).mean(0)
        order = sorted(range(prefix, len(x)), key=lambda i: -scores[i])
        count = int(np.ceil(0.7 * len(order)))
        stays, gone = sorted(order[:count]), order[count:]
        fused = sum(scores[i] * x[i] for i in gone)
        kept = [*range(prefix), *stays]
        return np.stack([*x[kept], fused]), size, [*[patches[i] for i in kept], [p for i in gone for p in patches[i]]]

    schedule = prunekit.create("schedule", "evit", keep=0.7)
    with torch.no_grad(), prunekit.method("evit", schedule=schedule, keep_tokens=8)(model) as trace:
        out = model.forward_features(image)
        back = trace.unmerge(out)
    for b in range(2):
        expected, patches = by_hand(model, image[b], step, False)
        assert np.abs(out[b].numpy() - expected).max() < 1e-6
        assert np.abs(back[b, patches[-1]].numpy() - expected[-1]).max() < 1e-6


def test_the_model_is_as_before_and_keeps_its_outputs_at_ratio_one():
    model, image = vit(), pixels()
    with torch.no_grad():
        before = model(image)
        for name in ("tome", "evit"):
            with prunekit.method(name, keep_ratio=1.0)(model):
                assert torch.equal(model(image), before)
            with prunekit.method(name, keep_ratio=0.3)(model):
                assert not torch.equal(model(image), before)
            assert torch.equal(model(image), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_is_computed_is_less():
    """Multiply-accumulates as torch counts them, apart from the trace; ToMe's own matching included."""
    from torch.utils.flop_counter import FlopCounterMode

    model, image = timm.create_model("vit_tiny_patch16_224").eval(), torch.randn(1, 3, 224, 224)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        return counter.get_total_flops()

    dense = flops()
    with prunekit.method("tome", schedule=prunekit.create("schedule", "every_block", r=13), keep_tokens=40)(model):
        merged = flops()
    with prunekit.method("evit", schedule=prunekit.create("schedule", "evit", keep=0.7), keep_tokens=71)(model):
        dropped = flops()
    assert merged < 0.65 * dense and dropped < 0.75 * dense


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("vit_tiny_patch16_224", dict(method="fastervlm"), "has no cut inside a vision encoder"),
        ("vit_tiny_patch16_224", dict(method="downsample"), "cannot be shrunk"),
        ("swin_tiny_patch4_window7_224", dict(method="tome"), "SwinTransformer"),
        ("eva02_tiny_patch14_224", dict(method="tome"), "only plain ViTs"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(name, options, match):
    with pytest.raises(ValueError, match=match) as caught:
        prunekit.method(options["method"]).apply(timm.create_model(name))
    assert "\n" not in str(caught.value)


def test_applying_twice_is_an_error():
    model = vit()
    handle = prunekit.method("tome").apply(model)
    with pytest.raises(ValueError, match="pruned already"):
        prunekit.method("evit").apply(model)
    handle.remove()
    prunekit.method("evit").apply(model).remove()
