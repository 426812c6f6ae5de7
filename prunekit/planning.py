"""A pruner's schedule resolved on a vision encoder."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

from prunekit.components.base import Cut, RowScorer
from prunekit.engine.encoder import EncoderPlan
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.families.vision import VisionTower, vision_of

if TYPE_CHECKING:
    from prunekit.pruner import Pruner


def plan_vision(pruner: Pruner, family: Family, at_input: bool) -> tuple[VisionTower | None, EncoderPlan | None]:
    """The vision encoder of a model where a pruner needs it, and what goes inside it.

    Raises:
        PrunekitError: for a component at a site where it cannot work, and an encoder that is not known.
    """
    schedule, reducer = pruner.schedule, pruner.reducer
    if at_input:
        check_site(pruner, "input")
    if not (schedule.in_encoder or pruner.reads_vision or (at_input and reducer.before_projector)):
        return None, None
    tower = vision_of(family)
    if not schedule.in_encoder:
        return tower, None
    alone = not schedule.cuts(family.depth, 0.5)
    return tower, plan_encoder(pruner, tower, alone)


def plan_encoder(pruner: Pruner, tower: VisionTower, alone: bool = True) -> EncoderPlan:
    """What goes inside an encoder; ``alone`` if nothing goes after it, so that the keep ratio must be met inside."""
    schedule, name = pruner.schedule, pruner.schedule.registered_name
    check_site(pruner, "vision")
    if reason := tower.refuses_cuts():
        raise PrunekitError(f"site=vision: no token can go inside the encoder of '{tower.name}': {reason}")
    if pruner.reducer.weighs_attention and tower.implementation.startswith("flash"):
        raise PrunekitError(f"{tower.implementation} cannot weigh attention by sizes: load the model with 'sdpa'")
    if not pruner.selector.exact:
        selector = pruner.selector.registered_name
        raise PrunekitError(f"selector '{selector}' keeps another number for each image; inside an encoder all keep one")
    assert tower.patches is not None
    tokens, ratio = pruner.keep_tokens, pruner.keep_ratio
    if tokens is not None:
        ratio = min(1.0, tokens / tower.patches)
    assert ratio is not None
    blocks = tower.read + 1
    cuts = schedule.vision_cuts(blocks, tower.patches, ratio)
    layers, shares = [cut.layer for cut in cuts], [1.0, *(cut.ratio for cut in cuts)]
    if any(not 0 <= layer < blocks for layer in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise PrunekitError(f"schedule '{name}' must cut inside rising blocks of 0..{blocks - 1}, not {layers}")
    if any(b > a for a, b in itertools.pairwise(shares)):
        raise PrunekitError(f"schedule '{name}' must leave falling shares inside the encoder, not {shares[1:]}")
    counts = {cut.layer: max(1, round(cut.ratio * tower.patches)) for cut in cuts}
    _say_nearest(pruner, cuts, tower.patches, ratio, alone)
    return EncoderPlan(counts, _evidence(pruner, layers))


def check_site(pruner: Pruner, site: str) -> None:
    """Raise for a scorer that cannot work at a site."""
    scorer = pruner.scorer
    if site not in scorer.sites:
        where = ", ".join(scorer.sites)
        raise PrunekitError(f"scorer '{scorer.registered_name}' cannot work at site={site} (it works at: {where})")


def _evidence(pruner: Pruner, layers: list[int]) -> dict[int, list[int]]:
    """The blocks that decide each cut. A cut inside a block comes after its attention, so the block itself counts."""
    fusion, scorer = pruner.fusion, pruner.scorer
    found: dict[int, list[int]] = {}
    for previous, layer in zip([-1, *layers], layers, strict=False):
        blocks = list(fusion.layers(layer + 1, previous + 1))
        if not blocks or max(blocks) > layer:
            raise PrunekitError(f"fusion '{fusion.registered_name}' names no block before the cut inside block {layer}")
        found[layer] = blocks
    if fusion.joins_views and not isinstance(scorer, RowScorer):
        raise PrunekitError(f"fusion '{fusion.registered_name}' joins attention rows; '{scorer.registered_name}' reads none")
    return found


def _say_nearest(pruner: Pruner, cuts: tuple[Cut, ...], patches: int, ratio: float, alone: bool) -> None:
    """Where the keep ratio cannot be met, say what is."""
    wanted, found = max(1, round(ratio * patches)), max(1, round(cuts[-1].ratio * patches)) if cuts else patches
    if alone and wanted != found:
        name = pruner.name or pruner.schedule.registered_name
        warnings.warn(f"'{name}' keeps {found} of an image's {patches} patches, the nearest to {wanted} that it can", stacklevel=2)
