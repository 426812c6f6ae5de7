"""Plans: a recipe resolved on a model, as the engine is handed it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunekit.components.base import Cut, RowScorer, Schedule
from prunekit.components.calibrated import CalibratedSchedule
from prunekit.engine.guards import check_weights
from prunekit.engine.plan import CutPlan, EncoderPlan, Parts, Plan
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.families.support import support_of
from prunekit.families.vision import VisionTower, vision_of
from prunekit.pruning.budget import Allotment, allot, place
from prunekit.pruning.encoder_budget import EncoderAllotment, place_in_encoder
from prunekit.pruning.recipe import Recipe, component_name

SITES = ("vision", "input", "decoder")


@dataclass(frozen=True)
class ScheduleQuota:
    """How many tokens stay after a cut: by a share of each sample's visual tokens, a count, or a budget.

    Attributes:
        share: the keep ratio, where neither of the others is given.
        tokens: a count for each sample.
        allotment: what a budget came to on this decoder.
    """

    schedule: Schedule
    depth: int
    share: float
    tokens: int | None = None
    allotment: Allotment | None = None

    def __call__(self, layer: int, visual: int, length: int) -> int:
        """Of ``visual`` tokens in a prompt of ``length`` tokens, how many stay after the cut before ``layer``."""
        ratio = self.share if self.tokens is None else min(1.0, self.tokens / visual)
        if self.allotment is not None:
            ratio = self.allotment.share(visual, length)
        cuts = self.schedule.cuts(self.depth, ratio)
        ratio = next(cut.ratio for cut in cuts if cut.layer == layer)
        return max(1, round(ratio * visual)) if ratio else 0


def parts_of(recipe: Recipe) -> dict[str, Any]:
    """The components that decide a cut, by the names of their fields in ``Parts``."""
    return {name: getattr(recipe, name) for name in Parts.__dataclass_fields__}


def fitted(schedule: Schedule, family: Family) -> Schedule:
    """The schedule as it is on a model: a fitted one with the calibration of that model, or an error."""
    return schedule.fitted(family.mark) if isinstance(schedule, CalibratedSchedule) else schedule


def allotment_of(recipe: Recipe, family: Family) -> Allotment | EncoderAllotment | None:
    """What a budget comes to on a model, None without one."""
    if recipe.budget is None:
        return None
    meet = place_in_encoder if "vision" in recipe.schedule.sites else place
    return meet(recipe.budget, fitted(recipe.schedule, family), family)


def plan(recipe: Recipe, family: Family) -> Plan:
    """What is removed from a model.

    Raises:
        PrunekitError: for a layer past the depth, and for what the components cannot do on this family.
    """
    for component in recipe.components.values():
        component.check(family.depth)
    if (schedule := fitted(recipe.schedule, family)) is not recipe.schedule:
        recipe = recipe.replace(schedule=schedule)
    _check_family(recipe, family)
    _check_places(recipe, family)
    allotment = allotment_of(recipe, family)
    if isinstance(allotment, EncoderAllotment):
        recipe, allotment = recipe.replace(budget=None, keep_ratio=allotment.keep_ratio), None
    schedule = recipe.schedule if allotment is None else allotment.schedule
    cuts = check_cuts(schedule, family.depth, recipe.share)
    encoder = plan_vision(recipe, family)
    plans = {}
    for previous, cut in zip([0, *(cut.layer for cut in cuts)], cuts, strict=False):
        evidence = _decoder_evidence(recipe, family, list(recipe.fusion.layers(cut.layer, previous)))
        plans[cut.layer] = CutPlan(layer=cut.layer, evidence=tuple(evidence), site=cut.site)
        reads = recipe.scorer.uses_attention and not recipe.scorer.works_without_attention
        if not evidence and (reads or recipe.fusion.needs_full_attention or recipe.selector.adapts_count):
            name, layer = recipe.scorer.registered_name, cut.layer
            raise PrunekitError(f"scorer '{name}' reads attention, but no layer lies before a cut at layer {layer}")
    if schedule.adapts_counts:
        _check_adaptive(recipe, plans)
    if reason := family.refuses_cuts(tuple(plans)):
        raise PrunekitError(f"model type '{family.model_type}' cannot be pruned here: {reason}")
    quota = ScheduleQuota(schedule, family.depth, recipe.share, recipe.keep_tokens, allotment)
    return Plan(
        **parts_of(recipe),
        depth=family.depth,
        cuts=plans,
        quota=quota,
        encoder=encoder,
        notes_media=recipe.reads_places,
        adaptive=schedule if schedule.adapts_counts else None,
    )


def _check_adaptive(recipe: Recipe, plans: Mapping[int, CutPlan]) -> None:
    """Raise where nothing says how many tokens of a sample are to stay."""
    name, first = recipe.schedule.registered_name, next(iter(plans.values()))
    if not recipe.scorer.uses_attention or not first.evidence:
        raise PrunekitError(
            f"schedule '{name}' counts by the attention before its first cut; scorer "
            f"'{recipe.scorer.registered_name}' reads none there"
        )
    if recipe.selector.adapts_count:
        raise PrunekitError(
            f"schedule '{name}' and selector '{recipe.selector.registered_name}' both say how many stay"
        )


def outline(recipe: Recipe, depth: int, width: int, mlp_width: int) -> Plan:
    """The plan on a decoder of which only the shape is known, for the cost meter."""
    schedule, allotment = recipe.schedule, None
    if recipe.budget is not None:
        allotment = allot(recipe.budget, schedule, depth, width, mlp_width)
        schedule = allotment.schedule
    plans, previous = {}, 0
    for cut in check_cuts(schedule, depth, recipe.share):
        evidence = tuple(recipe.fusion.layers(cut.layer, previous))
        plans[cut.layer] = CutPlan(layer=cut.layer, evidence=evidence, site=cut.site)
        previous = cut.layer
    quota = ScheduleQuota(schedule, depth, recipe.share, recipe.keep_tokens, allotment)
    return Plan(**parts_of(recipe), depth=depth, cuts=plans, quota=quota)


def plan_vision(recipe: Recipe, family: Family) -> EncoderPlan | None:
    """What happens in the vision encoder of a model, None where it is left alone.

    Raises:
        PrunekitError: for a component at a site where it cannot work, and an encoder that is not known.
    """
    schedule, reducer = recipe.schedule, recipe.reducer
    inside, at_input = "vision" in schedule.sites, "input" in schedule.sites
    if at_input:
        check_site(recipe, "input")
    if not (inside or recipe.reads_vision or (at_input and reducer.acts_before_projector)):
        return None
    tower = vision_of(family)
    if at_input and reducer.acts_before_projector and family.touches_hidden_between_layers:
        name = reducer.registered_name
        raise PrunekitError(
            f"reducer '{name}': '{family.model_type}' adds patches to later layers, a made token has none"
        )
    reads = recipe.reads_vision or (at_input and reducer.acts_before_projector)
    noted = _noted_blocks(recipe, tower) if reads else frozenset()
    if not inside:
        return EncoderPlan(**parts_of(recipe), noted_blocks=noted)
    return replace(plan_encoder(recipe, tower), noted_blocks=noted)


def _noted_blocks(recipe: Recipe, tower: VisionTower) -> frozenset[int]:
    """Blocks of the encoder that components read: two that are always there, and those that they name."""
    blocks = {tower.read, len(tower.blocks) - 1}
    for part in recipe.components.values():
        for block in part.vision_blocks(len(tower.blocks)):
            if not 0 <= block < len(tower.blocks):
                raise PrunekitError(
                    f"'{component_name(part)}' reads block {block} of the encoder of '{tower.name}', which has "
                    f"{len(tower.blocks)}"
                )
            blocks.add(block)
    return frozenset(blocks)


def plan_encoder(recipe: Recipe, tower: VisionTower) -> EncoderPlan:
    """What goes inside an encoder. Where nothing goes behind it the keep ratio must be met inside.

    Raises:
        PrunekitError: for components that cannot work there, and an encoder inside which nothing can go.
    """
    schedule, name = recipe.schedule, recipe.schedule.registered_name
    if "vision" not in schedule.sites:
        raise PrunekitError(f"schedule '{name}' has no cut inside a vision encoder, and '{tower.name}' is nothing else")
    alone = tuple(schedule.sites) == ("vision",)
    if not alone and tower.projector is None:
        raise PrunekitError(f"schedule '{name}' cuts behind the vision encoder, and '{tower.name}' is nothing else")
    check_site(recipe, "vision")
    if tower.packed and schedule.shrinks_images:
        raise PrunekitError(f"'{tower.name}' takes patches, not images: shrink them in its processor (max_pixels)")
    if tower.grid is None or tower.patches is None or (reason := tower.refuses_cuts()):
        reason = tower.refuses_cuts() or "its images differ in size"
        raise PrunekitError(f"site=vision: no token can go inside the encoder of '{tower.name}': {reason}")
    check_weights(recipe.reducer, tower.implementation)
    if not recipe.selector.exact or recipe.selector.adapts_count:
        selector = recipe.selector.registered_name
        raise PrunekitError(
            f"selector '{selector}' keeps another number for each image; inside an encoder all keep one"
        )
    tokens, ratio = recipe.keep_tokens, recipe.keep_ratio
    if tokens is not None:
        ratio = min(1.0, tokens / tower.patches)
    assert ratio is not None
    if (grid := schedule.image_grid(tower.grid, ratio)) is not None:
        return _shrunk(recipe, tower, grid, ratio)
    blocks = tower.read + 1
    cuts = schedule.vision_cuts(blocks, tower.patches, ratio)
    layers, shares = [cut.layer for cut in cuts], [1.0, *(cut.ratio for cut in cuts)]
    if any(not 0 <= layer < blocks for layer in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise PrunekitError(f"schedule '{name}' must cut inside rising blocks of 0..{blocks - 1}, not {layers}")
    if any(b > a for a, b in itertools.pairwise(shares)):
        raise PrunekitError(f"schedule '{name}' must leave falling shares inside the encoder, not {shares[1:]}")
    counts = {cut.layer: max(1, round(cut.ratio * tower.patches)) for cut in cuts}
    if alone:
        _say_nearest(recipe, counts[layers[-1]] if layers else tower.patches, tower.patches, ratio)
    return EncoderPlan(**parts_of(recipe), counts=counts, evidence=_evidence(recipe, layers), cuts_inside=True)


def _shrunk(recipe: Recipe, tower: VisionTower, grid: tuple[int, int], ratio: float) -> EncoderPlan:
    """The image itself is shrunk to ``grid`` patches."""
    if not tower.pixels:
        raise PrunekitError(f"the encoder of '{tower.name}' takes images of one size: they cannot be shrunk before it")
    assert tower.patches is not None
    _say_nearest(recipe, grid[0] * grid[1], tower.patches, ratio)
    return EncoderPlan(**parts_of(recipe), grid=None if grid == tower.grid else grid, cuts_inside=True)


def check_site(recipe: Recipe, site: str) -> None:
    """Raise for a scorer that cannot work at a site."""
    scorer = recipe.scorer
    if site not in scorer.sites:
        where = ", ".join(scorer.sites)
        raise PrunekitError(f"scorer '{scorer.registered_name}' cannot work at site={site} (it works at: {where})")


def _evidence(recipe: Recipe, layers: list[int]) -> dict[int, tuple[int, ...]]:
    """The blocks that decide each cut. A cut inside a block comes after its attention, so the block itself counts."""
    fusion, scorer = recipe.fusion, recipe.scorer
    evidence: dict[int, tuple[int, ...]] = {}
    for previous, layer in zip([-1, *layers], layers, strict=False):
        blocks = list(fusion.layers(layer + 1, previous + 1))
        if not blocks or max(blocks) > layer:
            raise PrunekitError(f"fusion '{fusion.registered_name}' names no block before the cut inside block {layer}")
        evidence[layer] = tuple(blocks)
    if fusion.needs_full_attention and fusion.joins_rows and not isinstance(scorer, RowScorer):
        raise PrunekitError(
            f"fusion '{fusion.registered_name}' joins attention rows; '{scorer.registered_name}' reads none"
        )
    return evidence


def _say_nearest(recipe: Recipe, reachable: int, patches: int, ratio: float) -> None:
    """Where the keep ratio cannot be met, say what is."""
    wanted = max(1, round(ratio * patches))
    if wanted != reachable:
        name = recipe.name or recipe.schedule.registered_name
        text = f"'{name}' keeps {reachable} of an image's {patches} patches, the nearest to {wanted} that it can"
        warnings.warn(text, stacklevel=2)


def _check_family(recipe: Recipe, family: Family) -> None:
    """What the options ask of a model beyond dropping tokens."""
    name = family.model_type
    if recipe.positions == "renumber" and not family.renumbers:
        where = "its decoder" if family.rotary is None else type(family.rotary).__name__
        raise PrunekitError(f"positions=renumber: '{name}' has no plain one-dimensional rotary positions ({where})")
    if family.rotary is None and (readers := [c for c in recipe.components.values() if c.uses_unrotated]):
        reader = component_name(readers[0])
        raise PrunekitError(f"'{reader}' undoes the rotary embedding, and the decoder of '{name}' has none")
    if recipe.reducer.reduces and family.stacked:
        kind, reducer = type(family.layers[0]).__name__, recipe.reducer.registered_name
        raise PrunekitError(f"reducer '{reducer}': {kind} of '{name}' carries several hidden states for a token")


def _check_places(recipe: Recipe, family: Family) -> None:
    """Raise for a component that needs to know where tokens stand, on a family whose geometry is not known."""
    readers = [part for part in recipe.components.values() if part.uses_places]
    if readers and support_of(family.model_type).geometry is None:
        raise PrunekitError(
            f"'{component_name(readers[0])}' needs view.places: where the visual tokens of '{family.model_type}' stand "
            "is not known"
        )


def _decoder_evidence(recipe: Recipe, family: Family, layers: list[int]) -> list[int]:
    """The layers that have evidence: a mean over many passes by those without attention, others cannot."""
    if recipe.fusion.uses_next_layer and recipe.scorer.uses_attention:
        for layer in layers:
            if (lender := family.key_layers[layer]) != layer:
                name = recipe.fusion.registered_name
                raise PrunekitError(f"fusion '{name}': layer {layer} borrows the keys of layer {lender}")
    if not recipe.scorer.uses_attention:
        return layers
    blind = [layer for layer in layers if not family.attends(layer)]
    if blind and (recipe.fusion.needs_full_attention or len(blind) == len(layers)):
        where = f"layers {blind} of '{family.model_type}'"
        raise PrunekitError(f"fusion '{recipe.fusion.registered_name}' reads {where}, which have no attention")
    return [layer for layer in layers if layer not in blind]


def check_cuts(schedule: Schedule, depth: int, ratio: float) -> tuple[Cut, ...]:
    """The cuts of a schedule, or an error if what it returns is no plan for a decoder of ``depth`` layers.

    Raises:
        PrunekitError: names the schedule and what it returned.
    """
    cuts, name = schedule.cuts(depth, ratio), component_name(schedule)
    layers, ratios = [cut.layer for cut in cuts], [cut.ratio for cut in cuts]
    sites = [site for site in schedule.sites if site != "vision"]
    if unknown := [site for site in schedule.sites if site not in SITES]:
        raise PrunekitError(f"schedule '{name}' cuts at {unknown}, which is none of {', '.join(SITES)}")
    if not cuts and not sites:
        return ()
    if not cuts or any((cut.site, cut.layer) != ("input", 0) and cut.site != "decoder" for cut in cuts):
        raise PrunekitError(f"schedule '{name}' must return cuts at the input or the decoder, not {list(cuts)}")
    if {cut.site for cut in cuts} != set(sites):
        raise PrunekitError(f"schedule '{name}' says that it cuts at {tuple(schedule.sites)}, but returns {list(cuts)}")
    if any(not 0 <= layer < depth for layer in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise PrunekitError(f"schedule '{name}' must cut before rising layers of 0..{depth - 1}, not {layers}")
    if any(b > a for a, b in itertools.pairwise([1.0, *ratios])) or abs(ratios[-1] - ratio) > 1e-9:
        raise PrunekitError(f"schedule '{name}' must leave falling shares that end at {ratio:g}, not {ratios}")
    return cuts
