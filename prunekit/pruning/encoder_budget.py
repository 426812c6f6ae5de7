"""Budgets of schedules that cut inside the vision encoder, where every image keeps the same share."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.components.base import Schedule
from prunekit.cost.encoder import encoder_saving
from prunekit.cost.reading import mlp_width
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.families.vision import VisionTower, vision_of
from prunekit.pruning.budget import NOMINAL, Allotment, Budget, encoder_cost, nearest, on_model


@dataclass(frozen=True)
class EncoderAllotment:
    """A budget met by one keep ratio, solved for the prompt that the budget names.

    Attributes:
        keep_ratio: of the schedule.
        value: what the prompt costs with it.
    """

    budget: Budget
    keep_ratio: float
    value: float

    def describe(self) -> str:
        """What came out, in one line."""
        return f"budget {self.budget}: keep_ratio {self.keep_ratio:.4g} for every image (reaches {self.value:.4g})"


def place_in_encoder(budget: Budget, schedule: Schedule, family: Family) -> EncoderAllotment:
    """The keep ratio whose cost comes nearest to the budget, among those that leave a whole number of patches.

    Raises:
        PrunekitError: for an encoder whose images differ in size, and a budget that no ratio meets.
    """
    tower, config = vision_of(family), family.text_config
    if tower.patches is None:
        raise PrunekitError(f"budget {budget}: images of '{tower.name}' differ in size; use keep_ratio")
    budget = on_model(budget, family)
    encoder = encoder_cost(budget, family) if budget.kind == "total" else None
    allotment = Allotment(budget, schedule, family.depth, config.hidden_size, mlp_width(config), encoder)
    visual = budget.visual or NOMINAL

    def value(count: int) -> float:
        ratio = count / tower.patches  # type: ignore[operator]
        entered, share = encoder_tokens(schedule, tower, ratio)
        counts, left, cuts = [], share, {cut.layer: cut.ratio for cut in schedule.cuts(family.depth, ratio)}
        for layer in range(family.depth):
            left = cuts.get(layer, left)
            counts.append(round(left * visual))
        if budget.kind == "final":
            return counts[-1]
        images = visual / (tower.patches // tower.group)  # type: ignore[operator]
        saved = images * encoder_saving(family, entered) if budget.kind == "total" else 0.0
        return allotment.cost(counts, visual, budget.text, saved)

    values = {count: value(count) for count in range(1, tower.patches + 1)}
    best = nearest(list(values), values.__getitem__, budget)
    return EncoderAllotment(budget, best / tower.patches, values[best])


def encoder_tokens(schedule: Schedule, tower: VisionTower, ratio: float) -> tuple[list[int], float]:
    """Tokens that enter each block of the encoder that counts, and the share of patches that leaves the last."""
    assert tower.patches is not None and tower.grid is not None
    blocks = tower.read + 1
    if (grid := schedule.image_grid(tower.grid, ratio)) is not None:
        small = grid[0] * grid[1]
        return [tower.prefix + small] * blocks, small / tower.patches
    after = {
        cut.layer: max(1, round(cut.ratio * tower.patches))
        for cut in schedule.vision_cuts(blocks, tower.patches, ratio)
    }
    standing, entered = tower.patches, []
    for block in range(blocks):
        entered.append(tower.prefix + standing)
        standing = after.get(block, standing)
    return entered, standing / tower.patches
