"""Budgets: a target for the cost instead of a keep ratio, solved into cut layers and counts.

``flops:0.5``        half of the dense LLM prefill's FLOPs (``gated`` formula, all tokens; what metrics.json calls
                     ``flops_ratio``);
``total:0.5``        half of the FLOPs of prefill and vision encoder together (``flops_ratio_with_vision``);
``mean_tokens:192``  visual tokens processed, averaged over the decoder's layers;
``final:64``         visual tokens that leave the last cut.

Where the user has fixed the schedule's layers they stay. Else the cuts stand at their default depths, and move to
earlier layers only as far as the target needs: late cuts decide on better evidence, but not if so little is left that
the last share falls below ``FLOOR``. A schedule that withdraws all tokens takes the layer that comes nearest. The
counts are solved for each sample, whose visual and other tokens are known in its prefill; inside the vision encoder,
where all images keep one share, they are solved once (``encoder_budget``).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from prunekit.components.base import Schedule
from prunekit.cost.encoder import encoder_macs
from prunekit.cost.formulas import layer_macs
from prunekit.cost.reading import mlp_width
from prunekit.errors import PrunekitError, check_choice
from prunekit.families import Family

KINDS = ("flops", "total", "mean_tokens", "final")
FLOOR = 1 / 9
"""Share of the visual tokens below which cuts move to earlier layers: 64 of 576, the strongest that papers report."""

TOLERANCE = 0.1
"""By what share of the target a schedule that knows few costs (withdrawal, cuts inside an encoder) may miss it."""

NOMINAL = 576
"""Visual tokens of the prompt that layers are chosen for, where the model does not fix them (LLaVA-1.5's)."""


@dataclass(frozen=True)
class Budget:
    """A target for the cost of a prompt.

    Attributes:
        kind, target: what is bounded (one of ``KINDS``) and its value.
        visual, text: the prompt that the layers are chosen for; by default what the model has, without text. The
            counts are solved for each real prompt anyway.
    """

    kind: str
    target: float
    visual: int | None = None
    text: int = 0

    def __post_init__(self) -> None:
        check_choice("budget", self.kind, KINDS)
        if not 0 < self.target < float("inf") or (self.is_share and self.target > 1):
            span = "(0, 1]" if self.is_share else "(0, ...)"
            raise PrunekitError(f"budget {self.kind}: the target must lie in {span}, not {self.target:g}")
        if self.kind == "final" and self.target != int(self.target):
            raise PrunekitError(f"budget final: the target must be a whole number of tokens, not {self.target:g}")

    @property
    def is_share(self) -> bool:
        """Whether the target is a share of the dense cost, not a count."""
        return self.kind in ("flops", "total")

    @classmethod
    def parse(cls, text: object) -> Budget:
        """From "kind:target".

        Raises:
            PrunekitError: for another kind, and a target that is no number or out of its range.
        """
        if isinstance(text, cls):
            return text
        kind, _, value = str(text).partition(":")
        check_choice("budget", kind, KINDS)
        try:
            return cls(kind, float(value))
        except ValueError as error:
            if isinstance(error, PrunekitError):
                raise
            raise PrunekitError(f"budget '{text}': '{value}' is not a number, as in {kind}:{_EXAMPLE[kind]}") from None

    def __str__(self) -> str:
        return f"{self.kind}:{self.target:g}"


_EXAMPLE = {"flops": "0.5", "total": "0.5", "mean_tokens": "192", "final": "64"}


@dataclass
class Allotment:
    """A budget on one decoder: the schedule with its cuts in place, and what each sample keeps.

    Attributes:
        depth, width, mlp_width: of the decoder.
        encoder: MACs of the vision encoder for so many visual tokens, for a budget that counts it.
    """

    budget: Budget
    schedule: Schedule
    depth: int
    width: int
    mlp_width: int
    encoder: Callable[[int], float] | None = None
    _solved: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    _warned: bool = False

    @property
    def withdraws(self) -> bool:
        """Whether the schedule leaves no visual token, so that only its layer can meet a budget."""
        return self.schedule.own_ratio() == 0

    def tokens(self, final: int, visual: int) -> list[int]:
        """Visual tokens of each layer if ``final`` of ``visual`` stay after the last cut."""
        cuts = {cut.layer: cut.ratio for cut in self.schedule.cuts(self.depth, final / visual)}
        left, counts = visual, []
        for layer in range(self.depth):
            if layer in cuts:
                left = max(1, round(cuts[layer] * visual)) if cuts[layer] else 0
            counts.append(left)
        return counts

    def value(self, final: int, visual: int, text: int) -> float:
        """What the budget bounds, for a prompt that keeps ``final`` tokens after the last cut."""
        if self.budget.kind == "final":
            return final
        return self.cost(self.tokens(final, visual), visual, text)

    def cost(self, counts: Sequence[int], visual: int, text: int, saved: float = 0.0) -> float:
        """The cost of a prompt whose layers process ``counts`` of its ``visual`` tokens: a share of the dense FLOPs, or
        a mean of tokens; ``saved`` are MACs that the vision encoder is spared."""
        if self.budget.kind == "mean_tokens":
            return sum(counts) / self.depth
        spent, dense = (
            float(layer_macs(torch.tensor([n + text for n in layers]), self.width, self.mlp_width).sum())
            for layers in (counts, [visual] * self.depth)
        )
        extra = self.encoder(visual) if self.budget.kind == "total" and self.encoder is not None else 0.0
        return (spent + extra - (saved if extra else 0.0)) / (dense + extra)

    def reach(self, visual: int, text: int) -> tuple[float, float]:
        """The least and the most that the prompt can cost."""
        if self.withdraws:
            return (self.value(0, visual, text),) * 2
        return self.value(1, visual, text), self.value(visual, visual, text)

    def solve(self, visual: int, text: int) -> int:
        """How many of ``visual`` tokens stay after the last cut: the count whose cost is nearest to the target."""
        if self.withdraws:
            return 0
        if (visual, text) not in self._solved:
            target = self.budget.target
            above = _first(lambda final: self.value(final, visual, text) >= target, visual)
            near = min((max(above - 1, 1), above), key=lambda final: abs(self.value(final, visual, text) - target))
            self._solved[visual, text] = near
        return self._solved[visual, text]

    def share(self, visual: int, length: int | None) -> float:
        """``solve`` as a share, for a sample of ``length`` tokens in all. One that cannot cost so little keeps one
        token (the first such warns), one that cannot cost so much keeps all."""
        if self.withdraws:
            return 0.0
        text = self.budget.text if length is None else length - visual
        if not self._warned and self.budget.target < (low := self.value(1, visual, text)) - 1e-9:
            self._warned = True
            warnings.warn(
                f"budget {self.budget}: a prompt of {visual} visual and {text} other tokens cannot cost less than "
                f"{low:.3g}; one visual token stays",
                stacklevel=2,
            )
        return self.solve(visual, text) / visual

    def describe(self) -> str:
        """Layers, counts and tokens per layer for the prompt that the layers are chosen for, in one line."""
        visual, text = self.budget.visual or NOMINAL, self.budget.text
        final = self.solve(visual, text)
        counts = self.tokens(final, visual)
        layers = [cut.layer for cut in self.schedule.cuts(self.depth, final / visual)]
        kept = ", ".join(f"{counts[layer]} from layer {layer}" for layer in layers)
        each = " ".join(str(n + text) for n in counts)
        reached = self.value(final, visual, text)
        return (
            f"budget {self.budget}: of {visual} visual tokens {kept} (reaches {reached:.4g}); "
            f"tokens per layer with {text} others: {each}"
        )


def allot(
    budget: Budget,
    schedule: Schedule,
    depth: int,
    width: int,
    mlp_width: int,
    encoder: Callable[[int], float] | None = None,
) -> Allotment:
    """Put a schedule's cuts where the budget can be met.

    Raises:
        PrunekitError: if no placement meets it, with the reachable range.
    """
    visual, text = budget.visual or NOMINAL, budget.text
    if not visual:
        raise PrunekitError(f"budget {budget}: the prompt has no visual tokens")
    placed = [Allotment(budget, s, depth, width, mlp_width, encoder) for s in (schedule, *schedule.earlier(depth))]
    if schedule.own_ratio() == 0:
        return nearest(placed, lambda a: a.value(0, visual, text), budget)
    able = [a for a in placed if _within(budget.target, *a.reach(visual, text))]
    if not able:
        ranges = [a.reach(visual, text) for a in placed]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        where = f"{visual} visual and {text} other tokens over {depth} layers"
        raise PrunekitError(f"budget {budget} is out of reach: {low:.3g} to {high:.3g} for {where}")
    if budget.kind == "final":  # says nothing about layers
        return able[0]
    return next((a for a in able if a.solve(visual, text) >= FLOOR * visual), able[-1])


T = TypeVar("T")


def nearest(candidates: Sequence[T], value: Callable[[T], float], budget: Budget) -> T:
    """The candidate whose value is nearest to the budget's target.

    Raises:
        PrunekitError: if that misses it by more than ``TOLERANCE``.
    """
    best = min(candidates, key=lambda candidate: abs(value(candidate) - budget.target))
    if abs(value(best) - budget.target) > TOLERANCE * budget.target:
        values = [value(candidate) for candidate in candidates]
        low, high = min(values), max(values)
        raise PrunekitError(
            f"budget {budget} is out of reach: {low:.3g} to {high:.3g} in {len(values)} steps, the nearest "
            f"{value(best):.3g}"
        )
    return best


def _within(target: float, low: float, high: float) -> bool:
    return low - 1e-9 <= target <= high + 1e-9


def _first(holds: Callable[[int], bool], high: int) -> int:
    """The least number of 1..high for which a rising condition holds; ``high`` if it never does."""
    low = 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def place(budget: Budget, schedule: Schedule, family: Family) -> Allotment:
    """The same on a model; layers are chosen for the prompt that the budget names, or for the model's own image.

    Raises:
        PrunekitError: also for a budget that counts an encoder whose cost is not known.
    """
    budget, config = on_model(budget, family), family.text_config
    encoder = encoder_cost(budget, family) if budget.kind == "total" else None
    return allot(budget, schedule, family.depth, config.hidden_size, mlp_width(config), encoder)


def on_model(budget: Budget, family: Family) -> Budget:
    """The budget for the model's own image, where all of its images have one size and no prompt is named."""
    if budget.visual is None and (grid := family.grid) is not None:
        return for_prompt(budget, grid[0] * grid[1], budget.text)
    return budget


def encoder_cost(budget: Budget, family: Family) -> Callable[[int], float]:
    """MACs of the model's vision encoder for so many visual tokens.

    Raises:
        PrunekitError: for an encoder whose cost is not known.
    """
    if encoder_macs(family, NOMINAL) is None:
        raise PrunekitError(
            f"budget {budget}: the cost of the vision encoder of '{family.model_type}' is not known; use flops"
        )
    return lambda visual: encoder_macs(family, visual) or 0.0


def for_prompt(budget: Budget, visual: int, text: int) -> Budget:
    """The budget with its layers chosen for such a prompt."""
    return dataclasses.replace(budget, visual=visual, text=text)
