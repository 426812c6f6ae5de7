"""What the vision encoder costs a prompt, whole or with tokens that go inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.cost.estimate import tower_macs
from prunekit.cost.formulas import layer_macs
from prunekit.cost.towers import tower_of
from prunekit.families import Family
from prunekit.families.vision import vision_of


def encoder_macs(family: Family, visual: int) -> float | None:
    """MACs of the encoder, patch embedding and projector for ``visual`` tokens of whole images (formula ``counter``);
    None for towers whose layout is not known."""
    tower = tower_of(family.config, family.text_config.hidden_size)
    if tower is None:
        return None
    count = max(1, tower.images(visual))
    each = tower.patches if tower.patches is not None else visual * tower.merge // count
    return tower_macs(tower, [each] * count, "counter") + visual * tower.projector


def encoder_saving(family: Family, tokens: Sequence[int]) -> float:
    """MACs that an image's encoder layers save when ``tokens`` enter each block instead of all (formula ``fastv``).

    A block counts for what enters it, so that the MLP behind a cut inside it counts as whole.
    """
    tower, config = vision_of(family), family.config.vision_config  # type: ignore[union-attr]
    if tower.patches is None:
        return 0.0
    entered = torch.tensor([[tower.patches + tower.prefix] * len(tokens), list(tokens)])
    macs = layer_macs(entered, config.hidden_size, config.intermediate_size, "fastv").sum(1)
    return float(macs[0] - macs[1])
