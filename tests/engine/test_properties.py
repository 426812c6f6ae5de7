"""Removal ≡ masking for layouts, cuts and ratios that nobody chose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunekit
from reference import dense_with_hidden_keys, hidden_keys
from zoo.tiny import DEPTH, IMAGE, Batch, tiny_batch, tiny_model

PATCHES = 16
MODELS = {attn: tiny_model("llava", attn) for attn in ("eager", "sdpa")}

words = st.lists(st.integers(2, 80), min_size=1, max_size=6)
rows = st.tuples(words, st.lists(words, max_size=2))  # text, then images each followed by text
layouts = st.lists(rows, min_size=1, max_size=3).filter(lambda found: any(images for _, images in found))
schedules = st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=3, unique=True).map(sorted)


def make_batch(layout, right: bool) -> Batch:
    tokens = [text + [t for after in images for t in [IMAGE] * PATCHES + after] for text, images in layout]
    size = max(map(len, tokens))
    ids, mask = torch.zeros(len(tokens), size, dtype=torch.long), torch.zeros(len(tokens), size, dtype=torch.long)
    for i, row in enumerate(tokens):
        place = slice(0, len(row)) if right else slice(size - len(row), size)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    count = sum(len(images) for _, images in layout)
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(size))
    return tiny_batch({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


@settings(max_examples=25, derandomize=True)
@given(layouts, st.booleans(), schedules, st.floats(0.02, 1.0), st.sampled_from(["eager", "sdpa"]))
def test_random_layouts_cuts_and_ratios(layout, right, layers, ratio, attn):
    batch = make_batch(layout, right)
    scorer = "random" if 0 in layers else "instruction"
    schedule = prunekit.create("schedule", "progressive", layers=layers)
    with torch.no_grad(), prunekit.Pruner(scorer, schedule=schedule, keep_ratio=ratio)(MODELS[attn]) as trace:
        prompt = MODELS[attn](**batch.inputs).logits
    counts = batch.visual.sum(1)
    kept = trace.cuts[-1].kept.sum(1)
    assert kept.tolist() == [max(1, round(ratio * n)) if n else 0 for n in counts.tolist()]
    expected, _, _ = dense_with_hidden_keys(MODELS["eager"], batch, hidden_keys(batch, trace.cuts))
    text = batch.mask & ~batch.visual
    assert (prompt - expected)[text].abs().max() < 1e-4


@settings(max_examples=10, derandomize=True)
@given(layouts, schedules, st.floats(0.02, 1.0))
def test_random_layouts_in_generation(layout, layers, ratio):
    batch, model = make_batch(layout, right=False), MODELS["sdpa"]
    schedule = prunekit.create("schedule", "progressive", layers=layers)
    with torch.no_grad(), prunekit.Pruner("random", schedule=schedule, keep_ratio=ratio)(model) as trace:
        made = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)[:, batch.ids.shape[1] :]
    _, expected, _ = dense_with_hidden_keys(MODELS["eager"], batch, hidden_keys(batch, trace.cuts), new=3)
    assert torch.equal(made, expected)


@pytest.mark.filterwarnings("ignore:no text after the image")
def test_an_image_at_the_very_end():
    batch = tiny_batch({
        "input_ids": torch.tensor([[5, *[IMAGE] * PATCHES]]), "attention_mask": torch.ones(1, 17, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    })  # fmt: skip
    with torch.no_grad(), prunekit.Pruner(keep_ratio=0.25)(MODELS["sdpa"]) as trace:
        made = MODELS["sdpa"].generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    assert made.shape[1] == 19 and trace.cuts[-1].kept.sum() == 4
