"""The Pruner: five components and a budget, applied to a model by hooks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from prunekit import components as _components  # noqa: F401  (registers the built-in names)
from prunekit.budget import Allotment, Budget, allot, for_prompt, place
from prunekit.components.base import Component, Cut, Fusion, Reducer, RowScorer, Schedule, Scorer, Selector
from prunekit.cost.shapes import Stack
from prunekit.engine.alone import EncoderSession
from prunekit.engine.caller import PromptMarks
from prunekit.engine.encoder_run import EncoderPlan
from prunekit.engine.hooks import Session, holder
from prunekit.engine.state import Trace
from prunekit.engine.view import Regions
from prunekit.errors import PrunekitError, check_choice
from prunekit.families import Family, make_family
from prunekit.families.vision import VisionTower
from prunekit.families.wrappers import is_timm, unwrap
from prunekit.planning import plan_vision
from prunekit.registry import KINDS, registry

DEFAULTS = {
    "scorer": "instruction",
    "fusion": "multi",
    "schedule": "progressive",
    "selector": "topk",
    "reducer": "drop",
}
POSITIONS = ("keep", "renumber")
BASES: dict[str, type] = dict(zip(KINDS, (Scorer, Fusion, Schedule, Selector, Reducer), strict=True))


@dataclass(frozen=True)
class Plan:
    """A pruner's schedule resolved on one model.

    Attributes:
        cut_layers: layers before which tokens go, in order; a cut at the input is one before layer 0.
        evidence: for each cut layer, the layers whose evidence decides it.
        at_input: whether the first of them is a cut at the input.
        tower: the vision encoder, where something is noted or goes inside it.
        vision: what goes inside it.
        allotment: what a budget came to on this decoder, None without one.
    """

    pruner: Pruner
    depth: int
    cut_layers: tuple[int, ...]
    evidence: dict[int, list[int]]
    at_input: bool = False
    tower: VisionTower | None = None
    vision: EncoderPlan | None = None
    allotment: Allotment | None = None

    @property
    def first_layer(self) -> int:
        """The first layer that may see fewer tokens."""
        return 0 if self.vision is not None else self.cut_layers[0]

    def site(self, cut_layer: int) -> str:
        """Where the cut before a layer is said to be."""
        return "input" if self.at_input and cut_layer == 0 else "decoder"

    @property
    def evidence_layers(self) -> frozenset[int]:
        """All layers from which evidence is taken."""
        return frozenset(layer for layers in self.evidence.values() for layer in layers)

    @property
    def last_evidence(self) -> frozenset[int]:
        """For each cut the last layer that decides it, together."""
        return frozenset(layers[-1] for layers in self.evidence.values() if layers)

    def keep(self, cut_layer: int, count: int, length: int | None = None) -> int:
        """How many of a sample's ``count`` visual tokens stay after the cut before ``cut_layer``; a budget asks for its
        ``length`` in all as well."""
        if not count:
            return 0
        schedule, tokens = self.pruner.schedule, self.pruner.keep_tokens
        if self.allotment is not None:
            schedule, ratio = self.allotment.schedule, self.allotment.share(count, length)
        else:
            ratio = self.pruner.share if tokens is None else min(1.0, tokens / count)
        cuts = schedule.cuts(self.depth, ratio)
        return max(1, round(next(cut.ratio for cut in cuts if cut.layer == cut_layer) * count))


class Pruner:
    """A pruning method: which visual tokens stay, decided where, by what evidence.

    Args:
        scorer, fusion, schedule, selector, reducer: a registered name, or a component.
        keep_ratio: share of the original visual tokens that stays after the last cut, in (0, 1]; 0.5 by default.
        keep_tokens: the same as a count per sample; excludes ``keep_ratio``.
        budget: a target for the cost instead of either, "flops:0.5", "mean_tokens:192" or "final:64" (``Budget``).
        positions: "keep" leaves the kept tokens their position ids, "renumber" closes the gaps.
        name: the published method this is, if it is one.

    Raises:
        PrunekitError: (a ValueError) for unknown names and impossible options, here; for what a model cannot do, at
            ``apply``.
    """

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
        self.scorer: Scorer = _component("scorer", scorer)
        self.fusion: Fusion = _component("fusion", fusion)
        self.schedule: Schedule = _component("schedule", schedule)
        self.selector: Selector = _component("selector", selector)
        self.reducer: Reducer = _component("reducer", reducer)
        check_choice("positions", positions, POSITIONS)
        self.positions, self.name = positions, name
        self.budget, self.keep_ratio, self.keep_tokens = None if budget is None else Budget.parse(budget), None, None
        if self.budget is None:
            self.keep_ratio, self.keep_tokens = _kept(keep_ratio, keep_tokens, self.schedule.own_ratio())
        elif keep_ratio is not None or keep_tokens is not None:
            raise PrunekitError(f"budget={self.budget} excludes keep_ratio and keep_tokens")
        if self.fusion.joins_views and not isinstance(self.scorer, RowScorer):
            names = self.fusion.registered_name, self.scorer.registered_name
            raise PrunekitError(f"fusion '{names[0]}' joins attention rows; scorer '{names[1]}' reads none")
        if self.selector.counts_rows and not isinstance(self.scorer, RowScorer):
            names = self.selector.registered_name, self.scorer.registered_name
            raise PrunekitError(f"selector '{names[0]}' counts by attention rows; scorer '{names[1]}' reads none")

    @property
    def components(self) -> dict[str, Component]:
        """The five components by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def plan(self, family: Family) -> Plan:
        """Resolve the schedule on a model; raises for a layer past its depth and the like."""
        for component in self.components.values():
            component.check(family.depth)
        self._check_family(family)
        allotment = None if self.budget is None else place(self.budget, self.schedule, family)
        schedule = self.schedule if allotment is None else allotment.schedule
        cuts = check_cuts(schedule, family.depth, self.share)
        layers, at_input = [cut.layer for cut in cuts], bool(cuts) and cuts[0].site == "input"
        tower, vision = plan_vision(self, family, at_input)
        evidence = {}
        for previous, layer in zip([0, *layers], layers, strict=False):
            evidence[layer] = self._evidence(family, list(self.fusion.layers(layer, previous)))
            reads = self.scorer.uses_attention and not self.scorer.works_blind
            if not evidence[layer] and (reads or self.fusion.joins_views or self.selector.counts_rows):
                name = self.scorer.registered_name
                raise PrunekitError(f"scorer '{name}' reads attention, but no layer lies before a cut at layer {layer}")
        return Plan(self, family.depth, tuple(layers), evidence, at_input, tower, vision, allotment)

    def outline(self, stack: Stack) -> Plan:
        """The plan on a decoder of which only the shape is known, for the cost meter."""
        schedule, allotment = self.schedule, None
        if self.budget is not None:
            allotment = allot(self.budget, schedule, stack.layers, stack.hidden, stack.mlp_width)
            schedule = allotment.schedule
        layers = [cut.layer for cut in check_cuts(schedule, stack.layers, self.share)]
        steps = zip([0, *layers], layers, strict=False)
        evidence = {layer: list(self.fusion.layers(layer, previous)) for previous, layer in steps}
        return Plan(self, stack.layers, tuple(layers), evidence, allotment=allotment)

    def for_prompt(self, visual: int, text: int) -> Pruner:
        """The same with its budget's layers chosen for prompts of ``visual`` visual and ``text`` other tokens."""
        assert self.budget is not None
        other = copy.copy(self)
        other.budget = for_prompt(self.budget, visual, text)
        return other

    @property
    def share(self) -> float:
        """The keep ratio; 0.5 where it differs from sample to sample."""
        return 0.5 if self.keep_ratio is None else self.keep_ratio

    @property
    def reads_vision(self) -> bool:
        """Whether a component looks at the encoder's side of the visual tokens."""
        return any(part.uses_vision for part in (self.scorer, self.selector, self.reducer))

    @property
    def needs_pixels(self) -> bool:
        """Whether the vision encoder must run under this pruner, so that features made before do not do."""
        return self.reads_vision or self.reducer.before_projector or self.schedule.in_encoder

    def _check_family(self, family: Family) -> None:
        """What the options ask of a model beyond dropping tokens."""
        name = family.model_type
        if self.positions == "renumber" and not family.renumbers:
            where = "its decoder" if family.rotary is None else type(family.rotary).__name__
            raise PrunekitError(f"positions=renumber: '{name}' has no plain one-dimensional rotary positions ({where})")
        if (self.reducer.changes_tokens or self.reducer.adds_tokens) and family.stacked:
            kind, reducer = type(family.layers[0]).__name__, self.reducer.registered_name
            raise PrunekitError(f"reducer '{reducer}': {kind} of '{name}' carries several hidden states for a token")

    def _evidence(self, family: Family, layers: list[int]) -> list[int]:
        """The layers that have evidence: a mean over many passes by those without attention, others cannot."""
        if self.fusion.looks_ahead and self.scorer.uses_attention:
            for layer in layers:
                if (lender := family.key_layers[layer]) != layer:
                    name = self.fusion.registered_name
                    raise PrunekitError(f"fusion '{name}': layer {layer} borrows the keys of layer {lender}")
        if not self.scorer.uses_attention:
            return layers
        blind = [layer for layer in layers if not family.attends(layer)]
        if blind and (self.fusion.joins_views or len(blind) == len(layers)):
            where = f"layers {blind} of '{family.model_type}'"
            raise PrunekitError(f"fusion '{self.fusion.registered_name}' reads {where}, which have no attention")
        return [layer for layer in layers if layer not in blind]

    def apply(
        self,
        model: nn.Module,
        regions: Regions | None = None,
        *,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
    ) -> Handle:
        """Prune every prefill of ``model`` until the handle is removed. Applying twice is an error.

        Args:
            regions: where the answer of each sample of the batches to come is, for a scorer that asks (``oracle``):
                boxes (x0, y0, x1, y1) as fractions of the upright image, as the model sees it.
            prompt: what of the batches to come is prompt, bool [B, S], where other tokens follow it that must not
                choose what stays, such as a candidate answer; "all" if nothing does. ``generate`` and labels say it by
                themselves.
            visual: where the visual tokens stand, bool [B, S], for a model that is given ``inputs_embeds``.
        """
        if is_timm(inner := unwrap(model)):
            if prompt is not None or visual is not None:
                raise PrunekitError("prompt and visual mark tokens of a language model; an encoder alone has none")
            session: Session | EncoderSession = EncoderSession(self, inner)
        else:
            session = Session(self, model, regions, prompt, visual)
        session.install()
        return Handle(session)

    def __call__(
        self,
        model: nn.Module,
        regions: Regions | None = None,
        *,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
    ) -> PrunedBlock:
        """``with pruner(model) as trace:`` prunes inside the block and leaves the model as it was; see ``apply``."""
        return PrunedBlock(lambda: self.apply(model, regions, prompt=prompt, visual=visual))

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

    def save(self, folder: str | Path) -> None:
        """Write ``pruner.yaml`` to a folder, and fusion weights beside it."""
        from prunekit.saving import save_pruner

        save_pruner(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Pruner:
        """The pruner that ``save`` wrote to a folder."""
        from prunekit.saving import load_pruner

        return load_pruner(Path(folder))

    def __repr__(self) -> str:
        parts = ", ".join(f"{kind}={component!r}" for kind, component in self.components.items())
        ((option, value),) = self.kept_share.items()
        return f"Pruner({parts}, {option}={value!r}, positions={self.positions!r})"


class Handle:
    """A pruner on a model: ``trace`` of the latest prefill, ``remove()`` to take it off."""

    def __init__(self, session: Session | EncoderSession) -> None:
        self._session = session

    @property
    def trace(self) -> Trace:
        """What happened in the latest prefill."""
        return self._session.trace

    @property
    def prompt(self) -> PromptMarks | None:
        """What of the next batch is prompt; see ``Pruner.apply``."""
        return self._decoder_session.prompt

    @prompt.setter
    def prompt(self, marks: PromptMarks | None) -> None:
        self._decoder_session.prompt = marks

    @property
    def visual(self) -> torch.Tensor | None:
        """Where the visual tokens of the next batch stand; see ``Pruner.apply``."""
        return self._decoder_session.visual

    @visual.setter
    def visual(self, marks: torch.Tensor | None) -> None:
        self._decoder_session.visual = marks

    @property
    def _decoder_session(self) -> Session:
        if not isinstance(self._session, Session):
            raise PrunekitError("prompt and visual mark tokens of a language model; an encoder alone has none")
        return self._session

    @property
    def plan(self) -> Any:
        """The schedule as resolved on this model: a ``Plan``, or an ``EncoderPlan`` for an encoder alone."""
        return self._session.plan

    def remove(self) -> None:
        """Leave the model as it was before ``apply``; a second call does nothing. Raises if the latest prefill's scores
        were NaN and that could not be said yet."""
        self._session.remove()
        if isinstance(self._session, Session):
            self._session.check_scores()


class PrunedBlock:
    """The context that ``pruner(model)`` returns."""

    def __init__(self, apply: Callable[[], Handle]) -> None:
        self._apply = apply
        self._handles: list[Handle] = []

    def __enter__(self) -> Trace:
        self._handles.append(self._apply())
        return self._handles[-1].trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handle = self._handles.pop()
        if kind is None:
            handle.remove()
        else:
            handle._session.remove()


def remove(model: nn.Module) -> None:
    """Take the pruner off a model, where its handle is lost. A model without one is left as it is."""
    inner = unwrap(model)
    core = inner if is_timm(inner) else make_family(inner).core
    if (session := holder(core)) is not None:
        session.remove()


def check_cuts(schedule: Schedule, depth: int, ratio: float) -> tuple[Cut, ...]:
    """The cuts of a schedule, or an error if what it returns is no plan for a decoder of ``depth`` layers."""
    cuts, name = schedule.cuts(depth, ratio), component_name(schedule)
    layers, ratios = [cut.layer for cut in cuts], [cut.ratio for cut in cuts]
    if not cuts and schedule.in_encoder:
        return ()
    if not cuts or any((cut.site, cut.layer) != ("input", 0) and cut.site != "decoder" for cut in cuts):
        raise PrunekitError(f"schedule '{name}' must return cuts at the input or the decoder, not {list(cuts)}")
    if any(not 0 <= layer < depth for layer in layers) or any(b <= a for a, b in itertools.pairwise(layers)):
        raise PrunekitError(f"schedule '{name}' must cut before rising layers of 0..{depth - 1}, not {layers}")
    if any(b > a for a, b in itertools.pairwise([1.0, *ratios])) or abs(ratios[-1] - ratio) > 1e-9:
        raise PrunekitError(f"schedule '{name}' must leave falling shares that end at {ratio:g}, not {ratios}")
    return cuts


def component_name(component: Component) -> str:
    """The name a component is registered under; its class's name if it is not (a parent's name would be a lie)."""
    own = vars(type(component)).get("registered_name")
    return own or type(component).__name__


def _component(kind: str, given: Any) -> Any:
    made = registry.create(kind, given) if isinstance(given, str) else given
    if not isinstance(made, BASES[kind]):
        raise PrunekitError(f"{kind} must be a registered name or a {BASES[kind].__name__}, not {type(given).__name__}")
    return made


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
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 < ratio <= 1:
        raise PrunekitError(f"keep_ratio must lie in (0, 1], not {ratio!r}")
    if own is not None and abs(own - ratio) > 1e-6 * own:
        raise PrunekitError(f"schedule.ratios multiply to {own:g}, but keep_ratio is {ratio:g}: set keep_ratio={own:g}")
    return float(ratio), None
