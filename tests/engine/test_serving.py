"""What docs/serving.md says of transformers' continuous batching."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import prunekit
from zoo.tiny import make_batch, tiny_model

serving = pytest.importorskip("transformers.generation.configuration_utils")
if not hasattr(serving, "ContinuousBatchingConfig"):
    pytest.skip("this transformers has no continuous batching", allow_module_level=True)

SETTINGS = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)


def served(model, ids):
    small = serving.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    done = model.generate_batch(ids, generation_config=SETTINGS, continuous_batching_config=small, warmup=False)
    return list(done.values())


def test_a_pruned_model_refuses_requests_in_one_line_and_serves_them_afterwards():
    model, batch = tiny_model("llava"), make_batch("llava", batch=2)
    ids = [row.tolist() for row in batch.ids]
    with prunekit.Pruner()(model):
        refused = served(model, ids)
    assert len(refused) == 2
    for request in refused:
        assert request.generated_tokens == []
        assert (
            request.error
            == "PagedAttentionCache of continuous batching cannot hold pruned keys: use generate() with a batch"
        )
    assert all(not request.error and len(request.generated_tokens) == 3 for request in served(model, ids))


def test_without_a_pruner_it_serves_token_ids_alone():
    """The images do not reach the model: two requests that differ in their pictures get the same answer."""
    model, batch = tiny_model("llava"), make_batch("llava", batch=2)
    ids = batch.ids[:1].expand(2, -1)
    inputs = {**batch.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 1e-3, "the pictures matter"
    first, second = served(model, ids.tolist())
    assert first.generated_tokens == second.generated_tokens
