"""Schedules: where the cuts are and how many visual tokens stay after each."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunekit.components.base import Cut, Schedule
from prunekit.errors import PrunekitError
from prunekit.registry import register


def resolve_depth(fraction: float, depth: int) -> int:
    """The layer at a fraction of the depth: max(1, round(fraction · depth))."""
    return max(1, round(fraction * depth))


def check_layer(layer: int, depth: int) -> None:
    """Raise unless ``layer`` is one of the ``depth`` decoder layers."""
    if not 0 <= layer < depth:
        raise PrunekitError(f"schedule: layer {layer} is not in 0..{depth - 1} (the decoder has {depth} layers)")


def check_fraction(name: str, value: float) -> None:
    """Raise unless ``value`` lies in (0, 1)."""
    if not 0 < value < 1:
        raise PrunekitError(f"schedule.{name} must lie in (0, 1), not {value}")


@register("schedule", "one_shot")
@dataclass
class OneShot(Schedule):
    """One cut, after the first quarter of the depth unless told otherwise (founding document: k = 8 of 32).

    Args:
        layer: tokens go before this layer.
        depth: the same as a fraction of the depth; 0.25 if neither is given.
    """

    layer: int | None = None
    depth: float | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.depth is not None:
            raise PrunekitError("schedule.layer and schedule.depth exclude each other")
        if self.layer is not None and self.layer < 0:
            raise PrunekitError(f"schedule.layer must not be negative: {self.layer}")
        if self.depth is not None:
            check_fraction("depth", self.depth)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        at = self.layer
        if at is None:
            at = resolve_depth(0.25 if self.depth is None else self.depth, depth)
        check_layer(at, depth)
        return (Cut(at, keep_ratio),)

    def earlier(self, depth: int) -> Iterator[Schedule]:
        if self.layer is None and self.depth is None:
            for layer in range(resolve_depth(0.25, depth) - 1, 0, -1):
                yield dataclasses.replace(self, layer=layer)


@register("schedule", "withdraw")
@dataclass
class Withdraw(OneShot):
    """All visual tokens go before one layer (VTW, AAAI 2025, https://arxiv.org/abs/2405.05803); the keep ratio is 0.

    Args:
        layer: from this layer on no visual token stays.
        depth: the same as a fraction of the depth; 0.5 if neither is given (VTW: layer 16 of 32).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise PrunekitError("schedule.layer must be at least 1: before it nothing would have seen the image")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        at = self.layer
        if at is None:
            at = resolve_depth(0.5 if self.depth is None else self.depth, depth)
        check_layer(at, depth)
        return (Cut(at, 0.0),)

    def own_ratio(self) -> float | None:
        return 0.0

    def earlier(self, depth: int) -> Iterator[Schedule]:
        """Every layer: which one meets a budget is all that this schedule leaves open."""
        if self.layer is None and self.depth is None:
            for layer in range(depth - 1, 0, -1):
                yield dataclasses.replace(self, layer=layer)


@register("schedule", "progressive")
@dataclass
class Progressive(Schedule):
    """Several cuts; two by default, at a quarter and a half of the depth (founding document, progressive pruning).

    Args:
        layers: tokens go before these layers.
        depths: the same as fractions of the depth; [0.25, 0.5] if neither is given.
        ratios: the share that each cut leaves of what stood before it; their product must be the keep ratio. By
            default equal steps. A last ratio of 0 withdraws: no visual token goes on.
    """

    layers: list[int] | None = None
    depths: list[float] | None = None
    ratios: list[float] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and self.depths is not None:
            raise PrunekitError("schedule.layers and schedule.depths exclude each other")
        for name, places in (("layers", self.layers), ("depths", self.depths)):
            if places is not None and (not places or any(b <= a for a, b in itertools.pairwise(places))):
                raise PrunekitError(f"schedule.{name} must be a rising list, not {list(places)}")
        for fraction in self.depths or ():
            check_fraction("depths", fraction)
        if self.layers and self.layers[0] < 0:
            raise PrunekitError(f"schedule.layers must not be negative: {list(self.layers)}")
        for place, ratio in enumerate(self.ratios or (), 1):
            if not 0 < ratio <= 1 and (ratio != 0 or place < len(self.ratios or ())):
                raise PrunekitError(f"schedule.ratios must lie in (0, 1], the last may be 0, not {ratio}")
        count = len(self.layers or self.depths or (0.25, 0.5))
        if self.ratios is not None and len(self.ratios) != count:
            raise PrunekitError(f"schedule.ratios has {len(self.ratios)} entries for {count} cuts")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        layers = self.layers
        if layers is None:
            layers = [resolve_depth(f, depth) for f in self.depths or (0.25, 0.5)]
            if any(b <= a for a, b in itertools.pairwise(layers)):
                raise PrunekitError(f"schedule.depths fall on the same layer of {depth}: {layers}; use schedule.layers")
        for layer in layers:
            check_layer(layer, depth)
        shares = cumulative_shares(self.ratios, len(layers), keep_ratio)
        return tuple(Cut(layer, share) for layer, share in zip(layers, shares, strict=True))

    def own_ratio(self) -> float | None:
        return None if self.ratios is None else math.prod(self.ratios)

    def earlier(self, depth: int) -> Iterator[Schedule]:
        if self.layers is None and self.depths is None:
            for first in range(resolve_depth(0.25, depth) - 1, 0, -1):  # the second stays at twice the first's depth
                yield dataclasses.replace(self, layers=[first, 2 * first])


def cumulative_shares(ratios: Sequence[float] | None, count: int, keep_ratio: float) -> list[float]:
    """Share of the original tokens after each of ``count`` cuts, the last one exactly ``keep_ratio``.

    Given ratios whose product is another number are stretched in the exponent, which is what ``keep_tokens`` needs:
    there the final share differs from sample to sample.
    """
    if ratios is None:
        return [keep_ratio ** ((i + 1) / count) for i in range(count - 1)] + [keep_ratio]
    products = list(itertools.accumulate(ratios, lambda a, b: a * b))
    if math.isclose(products[-1], keep_ratio, rel_tol=1e-6) or products[-1] == 1:
        return [*products[:-1], keep_ratio]
    exponents = [math.log(p) / math.log(products[-1]) for p in products[:-1]]
    return [keep_ratio**e for e in exponents] + [keep_ratio]
