"""A pruner's schedule resolved on a vision encoder."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

from prunekit.components.base import RowScorer
from prunekit.engine.encoder_run import EncoderPlan
from prunekit.engine.guards import check_weights
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
    if at_input and reducer.before_projector and family.touches_hidden_between_layers:
        name = reducer.registered_name
        raise PrunekitError(
            f"reducer '{name}': '{family.model_type}' adds patches to later layers, a made token has none"
        )
    if not schedule.in_encoder:
        return tower, None
    alone = not schedule.cuts(family.depth, 0.5)
    return tower, plan_encoder(pruner, tower, alone)


def plan_encoder(pruner: Pruner, tower: VisionTower, alone: bool = True) -> EncoderPlan:
    """What goes inside an encoder; ``alone`` if nothing goes after it, so that the keep ratio must be met inside."""
    schedule, name = pruner.schedule, pruner.schedule.registered_name
    if not schedule.in_encoder:
        raise PrunekitError(f"schedule '{name}' has no cut inside a vision encoder, and '{tower.name}' is nothing else")
    if pruner.schedule.cuts(64, pruner.keep_ratio or 0.5) and tower.projector is None:
        raise PrunekitError(f"schedule '{name}' cuts behind the vision encoder, and '{tower.name}' is nothing else")
    check_site(pruner, "vision")
    if tower.packed and schedule.image_grid((1, 1), 1.0) is not None:
        raise PrunekitError(f"'{tower.name}' takes patches, not images: shrink them in its processor (max_pixels)")
    if tower.grid is None or tower.patches is None or (reason := tower.refuses_cuts()):
        reason = tower.refuses_cuts() or "its images differ in size"
        raise PrunekitError(f"site=vision: no token can go inside the encoder of '{tower.name}': {reason}")
    check_weights(pruner, tower)
    if not pruner.selector.exact:
        selector = pruner.selector.registered_name
        raise PrunekitError(
            f"selector '{selector}' keeps another number for each image; inside an encoder all keep one"
        )
    tokens, ratio = pruner.keep_tokens, pruner.keep_ratio
    if tokens is not None:
        ratio = min(1.0, tokens / tower.patches)
    assert ratio is not None
    if (grid := schedule.image_grid(tower.grid, ratio)) is not None:
        return _shrunk(pruner, tower, grid, ratio)
    blocks = tower.read + 1
    cuts = schedule.vision_cuts(blocks, tower.patches, ratio)
    layers, shares = [cut.layer for cut in cuts], [1.0, *(cut.ratio for cut in cuts)]
    if any(not 0 <= layer < blocks for layer in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise PrunekitError(f"schedule '{name}' must cut inside rising blocks of 0..{blocks - 1}, not {layers}")
    if any(b > a for a, b in itertools.pairwise(shares)):
        raise PrunekitError(f"schedule '{name}' must leave falling shares inside the encoder, not {shares[1:]}")
    counts = {cut.layer: max(1, round(cut.ratio * tower.patches)) for cut in cuts}
    if alone:
        _say_nearest(pruner, counts[layers[-1]] if layers else tower.patches, tower.patches, ratio)
    return EncoderPlan(counts, _evidence(pruner, layers))


def _shrunk(pruner: Pruner, tower: VisionTower, grid: tuple[int, int], ratio: float) -> EncoderPlan:
    """The image itself is shrunk to ``grid`` patches."""
    if not tower.pixels:
        raise PrunekitError(f"the encoder of '{tower.name}' takes images of one size: they cannot be shrunk before it")
    assert tower.patches is not None
    _say_nearest(pruner, grid[0] * grid[1], tower.patches, ratio)
    return EncoderPlan({}, {}, None if grid == tower.grid else grid)


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
        raise PrunekitError(
            f"fusion '{fusion.registered_name}' joins attention rows; '{scorer.registered_name}' reads none"
        )
    return found


def _say_nearest(pruner: Pruner, found: int, patches: int, ratio: float) -> None:
    """Where the keep ratio cannot be met, say what is."""
    wanted = max(1, round(ratio * patches))
    if wanted != found:
        name = pruner.name or pruner.schedule.registered_name
        text = f"'{name}' keeps {found} of an image's {patches} patches, the nearest to {wanted} that it can"
        warnings.warn(text, stacklevel=2)
