"""IVTP's two stages in one schedule: rollout within groups of encoder blocks, then of decoder layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import prunekit
from prunekit.data import load
from prunekit.evaluation.batches import Batcher
from prunekit.models import load_model


def pruner(size: int) -> prunekit.Pruner:
    groups = prunekit.create("schedule", "groups", size=size, within=4, vision=True)
    return prunekit.method("ivtp_rollout", keep_tokens=16, schedule=groups)


@pytest.mark.parametrize(("size", "counts"), [(1, [100, 69, 48, 36, 28, 21, 16]), (2, [48, 28, 16])])
def test_the_encoders_stage_keeps_the_cls_rows_best(size, counts):
    """The first cut inside the encoder against the product of its eager attention matrices."""
    loaded, made = load_model("mini", device="cpu"), pruner(size)
    inputs = Batcher(loaded).inputs(load("test", 3), made)
    with torch.no_grad(), made(loaded.model) as trace:
        loaded.model(**inputs)
    assert [int(cut.kept[0].sum()) for cut in trace.cuts] == counts
    eager = load_model("mini", device="cpu", attn="eager").model.model.vision_tower
    with torch.no_grad():
        attentions = eager(inputs["pixel_values"], output_attentions=True).attentions
    for b, kept in enumerate(trace.cuts[0].kept):
        rollout = np.eye(attentions[0].shape[-1])
        for block in attentions[:size]:
            rollout = (0.5 * np.eye(len(rollout)) + 0.5 * block[b].double().numpy().mean(0)) @ rollout
        best = np.argsort(-rollout[0, 1:], kind="stable")[: counts[0]]
        assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())


def test_an_encoder_too_shallow_for_a_group():
    with pytest.raises(prunekit.PrunekitError, match="no group of 4 blocks ends within the encoder's 3"):
        pruner(4).apply(load_model("mini", device="cpu").model)
