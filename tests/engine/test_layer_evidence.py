"""What views show of a layer's attention beside its rows: values, queries and keys before the rotary embedding, heads.

The oracles are the model's own: what enters its output projection, and the same model with a rotary embedding of no
angle at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import prunekit
import zoo
from prunekit.families import EXACT, family_of

NAMES = [name for name in zoo.NAMES if zoo.FAMILY[name] in EXACT and name not in zoo.BROKEN]
PLAIN = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "llava_onevision", "mistral3")


@dataclass
class Reader(prunekit.Scorer):
    """Keeps what the latest view answered, by name."""

    uses_attention = uses_values = uses_unrotated = True
    reads: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def score(self, view):
        self.answers.clear()
        self.answers.update({name: read(view) for name, read in self.reads.items()})
        return view.alive.float()


BEFORE: dict[str, Any] = dict(queries=lambda view: view.queries_unrotated, keys=lambda view: view.keys_unrotated)


def look(model, batch, fusion: str = "single", layer: int = 1, **reads) -> dict[str, Any]:
    """What the view of the layer before ``layer`` answers (with ``fusion=ahead`` that of ``layer``); nothing goes."""
    scorer = Reader(reads)
    schedule = prunekit.create("schedule", "one_shot", layer=layer)
    with torch.no_grad(), prunekit.Pruner(scorer, fusion, schedule, keep_ratio=1.0)(model):
        model(**batch.inputs)
    return scorer.answers


def turned_by_nothing(model, batch) -> dict[str, Any]:
    """Queries and keys of layer 0 where every angle of the rotary embedding is 0."""
    rotary = family_of(model).rotary
    hook = rotary.register_forward_hook(lambda m, a, out: (torch.ones_like(out[0]), torch.zeros_like(out[1])))
    try:
        return look(model, batch, queries=lambda view: view.queries, keys=lambda view: view.keys)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", [name for name in PLAIN if name in NAMES])
def test_without_the_rotary_embedding(name):
    model, batch = zoo.build(name), zoo.batch(name, "left")
    got, expected = look(model, batch, turned=lambda view: view.queries, **BEFORE), turned_by_nothing(model, batch)
    for kind in BEFORE:
        assert got[kind].shape == expected[kind].shape
        assert (got[kind] - expected[kind]).abs().max() < 1e-5
    assert (got["queries"] - got["turned"]).abs().max() > 0.1  # there is an embedding to undo


@pytest.mark.parametrize("name", [name for name in PLAIN if name in NAMES])
def test_a_look_ahead_shows_the_same(name):
    model, batch = zoo.build(name), zoo.batch(name, "left")
    reads = BEFORE | {"values": lambda view: view.values}
    ahead, real = look(model, batch, "ahead", **reads), look(model, batch, layer=2, **reads)
    for kind in reads:
        assert (ahead[kind] - real[kind])[batch_rows(batch, real[kind])].abs().max() < 1e-5


def batch_rows(batch, like: torch.Tensor) -> torch.Tensor:
    """The real tokens of a batch, as a mask of a tensor [B, H, S, d]."""
    return batch.mask[:, None, :, None].expand(like.shape)


@pytest.mark.parametrize("name", [name for name in ("llava", "qwen2_vl") if name in NAMES])
def test_rows_without_the_rotary_embedding_in_plain_loops(name):
    model, batch = zoo.build(name), zoo.batch(name, "left")
    got = look(
        model, batch,
        rows=lambda view: view.attention("last", rotary=False),
        q=lambda view: view.queries_unrotated, k=lambda view: view.keys_unrotated,
    )  # fmt: skip
    heads, kv = got["q"].shape[1], got["k"].shape[1]
    for b in range(3):
        real = batch.mask[b].nonzero()[:, 0].tolist()
        for h in range(heads):
            q, k = got["q"][b, h].double(), got["k"][b, h * kv // heads].double()
            logits = torch.stack([q[real[-1]] @ k[s] for s in real]) / q.shape[-1] ** 0.5
            assert (got["rows"][b, h, 0][real].double() - logits.softmax(0)).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_on_every_family_right_or_refused_in_one_line(name):
    model, batch = zoo.build(name, zoo.SUPPORTS[name][-1]), zoo.batch(name, "left")
    family = family_of(model)
    if not family.attends(0):
        pytest.skip("layer 0 has no attention")
    try:
        got = look(model, batch, **BEFORE)
    except prunekit.PrunekitError as error:
        assert "rotary embedding" in str(error) and "\n" not in str(error)
        assert name not in PLAIN
        return
    assert family.rotary is not None
    try:
        expected = turned_by_nothing(model, batch)
    except (TypeError, AttributeError):
        pytest.skip("its rotary embedding is no pair of cosines and sines")
    assert (got["queries"] - expected["queries"])[batch_rows(batch, got["queries"])].abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in PLAIN if name in NAMES])
def test_rows_times_values_are_what_enters_the_output_projection(name):
    model, batch = zoo.build(name), zoo.batch(name, "left")
    attention, entered = family_of(model).attentions[0], []
    hook = attention.o_proj.register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    got = look(model, batch, rows=lambda view: view.attention("all"), values=lambda view: view.values,
               index=lambda view: view.query_index("all"))  # fmt: skip
    hook.remove()
    values = got["values"].repeat_interleave(got["rows"].shape[1] // got["values"].shape[1], 1)
    mixed = (got["rows"] @ values).transpose(1, 2).flatten(2)
    index, valid = got["index"]
    for b in range(3):
        assert (mixed[b][valid[b]] - entered[0][b, index[b][valid[b]]]).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in PLAIN if name in NAMES])
def test_rows_of_some_heads_are_those_of_all(name):
    model, batch = zoo.build(name), zoo.batch(name, "left")
    got = look(model, batch, some=lambda view: view.attention("text", heads=[3, 0]),
               every=lambda view: view.attention("text"))  # fmt: skip
    assert got["some"].shape[1] == 2
    assert (got["some"] - got["every"][:, [3, 0]]).abs().max() < 1e-6


@pytest.mark.parametrize("heads", [[], [4], [-1]])
def test_heads_that_a_layer_does_not_have(heads):
    with pytest.raises(prunekit.PrunekitError, match=r"must name some of the layer's heads 0\.\.3"):
        look(zoo.build("llava"), zoo.batch("llava"), rows=lambda view: view.attention("last", heads=heads))


@pytest.mark.parametrize("word", ["values", "queries_unrotated", "keys_unrotated"])
def test_what_nobody_asks_for_is_not_kept(word):
    @dataclass
    class Unasked(prunekit.Scorer):
        uses_attention = True

        def score(self, view):
            return getattr(view, word).sum((1, 3))

    schedule, model = prunekit.create("schedule", "one_shot", layer=1), zoo.build("llava")
    handle = prunekit.Pruner(Unasked(), "single", schedule, keep_ratio=0.5).apply(model)
    with pytest.raises(prunekit.PrunekitError, match="must set the class attribute uses_"), torch.no_grad():
        model(**zoo.batch("llava").inputs)
    handle.remove()


@pytest.mark.parametrize("name", [name for name in ("llava", "qwen2_vl", "qwen3_vl") if name in NAMES])
def test_angles_turn_what_was_before_into_what_is_attended_with(name):
    """Pairs (i, i + d/2) of each token, turned one by one."""
    got = look(
        zoo.build(name), zoo.batch(name, "left"),
        angles=lambda view: view.rotary_angles, turned=lambda view: view.keys, **BEFORE,
    )  # fmt: skip
    (cos, sin), keys = got["angles"], got["keys"]
    half = keys.shape[-1] // 2
    for i in range(half):
        c, s = cos[:, None, :, i], sin[:, None, :, i]
        a, b = keys[..., i], keys[..., i + half]
        assert (a * c - b * s - got["turned"][..., i]).abs().max() < 1e-5
        assert (b * c + a * s - got["turned"][..., i + half]).abs().max() < 1e-5
