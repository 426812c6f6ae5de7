"""The cost of vision encoders against torch's count."""

from __future__ import annotations

import pytest
import torch

import zoo
from prunekit.cost import flop_counter, shape_of
from prunekit.cost.prefill import vision_macs
from prunekit.families import SUPPORT, make_family


@pytest.mark.parametrize("name", [name for name, row in SUPPORT.items() if row.encoder_shape])
def test_vision_encoders_are_what_torch_counts(name):
    """All that is run before the decoder, from a batch's pixels and from the shape."""
    model, batch = zoo.build(name, "eager"), zoo.batch(name)
    family, kind = make_family(model), type(model).__name__
    path = next(path for path, module in model.named_modules() if module is family.decoder)
    with torch.inference_mode(), flop_counter() as counter:
        model(**batch.inputs)
    counts = counter.get_flop_counts()
    decoder, head = (sum(counts.get(f"{kind}.{part}", {}).values()) for part in (path, "lm_head"))
    found = counter.get_total_flops() - decoder - head
    assert 2 * vision_macs(family, batch.inputs) == pytest.approx(found, rel=0.01)
    assert shape_of(model.config).vision == shape_of(model).vision is not None


@pytest.mark.parametrize("name", ["llava_pixtral", "mistral3", "blip-2"])
def test_encoders_of_other_kinds_are_not_guessed(name):
    assert shape_of(zoo.build(name)).vision is None
