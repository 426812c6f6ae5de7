"""A recipe: five components and how much stays, the data of a pruner."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from typing import Any, Self

import prunekit.components  # noqa: F401  (registers the built-in names)
from prunekit.components.base import Component, Fusion, Reducer, RowScorer, Schedule, Scorer, Selector
from prunekit.errors import PrunekitError, UnknownNameError, check_choice
from prunekit.pruning.budget import Budget
from prunekit.registry import KINDS, registry

DEFAULTS = {
    "scorer": "instruction",
    "fusion": "multi",
    "schedule": "progressive",
    "selector": "topk",
    "reducer": "drop",
}
POSITIONS = ("keep", "renumber")
SHARES = ("keep_ratio", "keep_tokens", "budget")
BASES: dict[str, type] = dict(zip(KINDS, (Scorer, Fusion, Schedule, Selector, Reducer), strict=True))


class Recipe:
    """Five components, how much stays and where positions go. It cannot be changed: ``replace`` makes another."""

    scorer: Scorer
    fusion: Fusion
    schedule: Schedule
    selector: Selector
    reducer: Reducer
    positions: str
    name: str | None
    budget: Budget | None
    keep_ratio: float | None
    keep_tokens: int | None

    def __init__(
        self,
        scorer: str | Scorer = "instruction",
        fusion: str | Fusion = "multi",
        schedule: str | Schedule = "progressive",
        selector: str | Selector = "topk",
        reducer: str | Reducer = "drop",
        *,
        keep_ratio: float | None = None,
        keep_tokens: int | None = None,
        budget: str | Budget | None = None,
        positions: str = "keep",
        name: str | None = None,
    ) -> None:
        parts = dict(zip(KINDS, (scorer, fusion, schedule, selector, reducer), strict=True))
        vars(self).update({kind: _component(kind, part) for kind, part in parts.items()})
        check_choice("positions", positions, POSITIONS)
        target = None if budget is None else Budget.parse(budget)
        own = self.schedule.own_ratio()
        if own == 0:
            self._check_withdrawal(keep_ratio, keep_tokens, target)
        if target is None:
            keep_ratio, keep_tokens = _kept(keep_ratio, keep_tokens, own)
        elif keep_ratio is not None or keep_tokens is not None:
            raise PrunekitError(f"budget={target} excludes keep_ratio and keep_tokens")
        share = {"budget": target, "keep_ratio": keep_ratio, "keep_tokens": keep_tokens}
        vars(self).update(share, positions=positions, name=name)
        if self.fusion.needs_full_attention and self.fusion.joins_rows and not isinstance(self.scorer, RowScorer):
            names = self.fusion.registered_name, self.scorer.registered_name
            raise PrunekitError(f"fusion '{names[0]}' joins attention rows; scorer '{names[1]}' reads none")
        if self.selector.adapts_count and not isinstance(self.scorer, RowScorer):
            names = self.selector.registered_name, self.scorer.registered_name
            raise PrunekitError(f"selector '{names[0]}' counts by attention rows; scorer '{names[1]}' reads none")

    def _check_withdrawal(self, ratio: float | None, tokens: int | None, budget: Budget | None) -> None:
        """A schedule that leaves no token leaves no choice of how many, and nothing to merge into."""
        name = component_name(self.schedule)
        bounded = None if budget is not None and budget.kind != "final" else budget  # a layer can meet the others
        asked = {"keep_ratio": ratio or None, "keep_tokens": tokens, "budget": bounded}
        for option, value in asked.items():
            if value is not None:
                raise PrunekitError(f"schedule '{name}' keeps no visual token: {option}={value} cannot be met")
        if self.reducer.reduces:
            reducer = component_name(self.reducer)
            raise PrunekitError(f"schedule '{name}' keeps no visual token that reducer '{reducer}' could merge into")

    def __setattr__(self, name: str, value: object) -> None:
        raise PrunekitError(f"a {type(self).__name__} cannot be changed: replace({name}=...) makes another")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def replace(self, **changes: object) -> Self:
        """The same with other components or options; one of ``keep_ratio``, ``keep_tokens`` and ``budget`` replaces the
        one that was there.

        Raises:
            PrunekitError: for an option that a pruner does not have.
        """
        options: dict[str, Any] = {**self.components, "positions": self.positions, "name": self.name}
        for name in changes:
            if name not in (*options, *SHARES):
                raise UnknownNameError("option of a pruner:", name, (*options, *SHARES))
        if not any(name in changes for name in SHARES):
            options |= {name: value for name in SHARES if (value := getattr(self, name)) is not None}
        return type(self)(**{**options, **changes})

    @property
    def components(self) -> dict[str, Component]:
        """The five components by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def share(self) -> float:
        """The keep ratio; where it differs from sample to sample 0.5, or 0 of a schedule that withdraws all tokens."""
        if self.keep_ratio is None:
            return 0.0 if self.schedule.own_ratio() == 0 else 0.5
        return self.keep_ratio

    @property
    def reads_vision(self) -> bool:
        """Whether a component looks at the encoder's side of the visual tokens."""
        return any(part.uses_vision for part in (self.scorer, self.selector, self.reducer))

    @property
    def reads_places(self) -> bool:
        """Whether a component looks at where the visual tokens stand."""
        return any(part.uses_places for part in self.components.values())

    @property
    def needs_pixels(self) -> bool:
        """Whether the vision encoder must run under this pruner, so that features made before do not do."""
        return (
            self.reads_vision
            or self.reads_places
            or self.reducer.acts_before_projector
            or "vision" in self.schedule.sites
        )

    def describe(self) -> dict[str, Any]:
        """Names and options, as plain data; what ``save`` writes and ``load`` reads."""
        parts: dict[str, Any] = {
            kind: {"name": component_name(c), **_options(c)} for kind, c in self.components.items()
        }
        return {"name": self.name, **parts, **self.kept_share, "positions": self.positions}

    @property
    def kept_share(self) -> dict[str, Any]:
        """How much stays, under the name of the option that says so."""
        if self.budget is not None:
            return {"budget": str(self.budget)}
        return {"keep_ratio": self.keep_ratio} if self.keep_tokens is None else {"keep_tokens": self.keep_tokens}

    def __repr__(self) -> str:
        parts = ", ".join(f"{kind}={component!r}" for kind, component in self.components.items())
        ((option, value),) = self.kept_share.items()
        return f"{type(self).__name__}({parts}, {option}={value!r}, positions={self.positions!r})"


def component_name(component: Component) -> str:
    """The name a component is registered under; its class's name if it is not (a parent's name would be a lie)."""
    own = vars(type(component)).get("registered_name")
    return own or type(component).__name__


def _component(kind: str, part: str | Component) -> Any:
    component = registry.create(kind, part) if isinstance(part, str) else part
    if not isinstance(component, BASES[kind]):
        raise PrunekitError(f"{kind} must be a registered name or a {BASES[kind].__name__}, not {type(part).__name__}")
    return component


def _options(component: Component) -> dict[str, Any]:
    fields = dataclasses.fields(component)  # type: ignore[arg-type]
    return {f.name: copy.deepcopy(getattr(component, f.name)) for f in fields if f.init}


def _kept(ratio: float | None, tokens: int | None, own: float | None) -> tuple[float | None, int | None]:
    if tokens is not None:
        if ratio is not None:
            raise PrunekitError("keep_ratio and keep_tokens exclude each other")
        if isinstance(tokens, bool) or not isinstance(tokens, numbers.Integral) or tokens < 1:
            raise PrunekitError(f"keep_tokens must be a whole number from 1 on, not {tokens!r}")
        return None, int(tokens)
    if ratio is None:
        ratio = 0.5 if own is None else own
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not (0 < ratio <= 1 or own == 0 == ratio):
        raise PrunekitError(f"keep_ratio must lie in (0, 1], not {ratio!r}")
    if own is not None and abs(own - ratio) > 1e-6 * own:
        raise PrunekitError(f"schedule.ratios multiply to {own:g}, but keep_ratio is {ratio:g}: set keep_ratio={own:g}")
    return float(ratio), None
