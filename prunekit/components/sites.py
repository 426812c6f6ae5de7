"""Cuts before the decoder: schedules inside the vision encoder and at the input, and scorers that look there."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from prunekit.components.base import Cut, RowScorer, Schedule, Scorer
from prunekit.components.schedules import Progressive, check_fraction, cumulative_shares
from prunekit.errors import PrunekitError, check_interval
from prunekit.registry import register, registry
from prunekit.views.vision import received

if TYPE_CHECKING:
    from prunekit.views.encoder import EncoderView
from prunekit.views.layer import View

DEPTHS = [0.25, 0.5, 0.75]


@register("schedule", "input")
@dataclass
class Input(Schedule):
    """One cut after the projector, before decoder layer 0: the decoder never sees what goes."""

    sites = ("input",)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        return (Cut(0, keep_ratio, "input"),)


@register("schedule", "encoder")
@dataclass
class Encoder(Schedule):
    """Cuts inside the vision encoder, between attention and MLP of some blocks; three by default (EViT, ICLR 2022).

    Args:
        layers: the blocks.
        depths: the same as fractions of the blocks that count; [0.25, 0.5, 0.75] if neither is given (3, 6, 9 of 12;
            an encoder with too few blocks for three has fewer cuts).
        ratios: the share that each cut leaves of what stood before it; their product must be the keep ratio. By
            default equal steps.
    """

    layers: list[int] | None = None
    depths: list[float] | None = None
    ratios: list[float] | None = None

    sites = ("vision",)

    def __post_init__(self) -> None:
        Progressive(self.layers, self.depths or (None if self.layers else DEPTHS), self.ratios)  # the same rules
        if 0 in (self.ratios or ()):
            raise PrunekitError("schedule.ratios: inside the encoder a patch must stay, not 0")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        return ()

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[Cut, ...]:
        places = self.layers
        if places is None:
            places = block_places(self.depths or DEPTHS, blocks, fewer=self.depths is None)
        shares = cumulative_shares(self.ratios, len(places), keep_ratio)
        return tuple(Cut(place, share, "vision") for place, share in zip(places, shares, strict=True))

    def own_ratio(self) -> float | None:
        return None if self.ratios is None else math.prod(self.ratios)


@register("schedule", "every_block")
@dataclass
class EveryBlock(Schedule):
    """Some tokens go inside every block of the encoder (ToMe, section 3), never more than half of the patches in one.

    Args:
        r: tokens that go in a block; by default as many as the keep ratio needs, evenly spread.
        inflection: 0 takes the same number in every block, -1 falls linearly from twice that to none, 1 rises.
        counts: the number for each block instead.
    """

    r: int | None = None
    inflection: float = 0.0
    counts: list[int] | None = None

    sites = ("vision",)

    def __post_init__(self) -> None:
        if self.r is not None and self.counts is not None:
            raise PrunekitError("schedule.r and schedule.counts exclude each other")
        check_interval("schedule.inflection", self.inflection, "[-1, 1]")
        if min([self.r or 0, *(self.counts or [])]) < 0:
            raise PrunekitError(f"schedule: no block can merge fewer than 0 tokens: {self.counts or self.r}")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        return ()

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[Cut, ...]:
        gone, cuts = 0, []
        for block, until in enumerate(self._until(blocks, patches, keep_ratio)):
            step = min(until - gone, (patches - gone) // 2)
            if step > 0:
                gone += step
                cuts.append(Cut(block, (patches - gone) / patches, "vision"))
        return tuple(cuts)

    def _until(self, blocks: int, patches: int, keep_ratio: float) -> list[int]:
        """How many tokens are to be gone after each block."""
        if self.counts is not None:
            if len(self.counts) != blocks:
                raise PrunekitError(f"schedule.counts has {len(self.counts)} entries for an encoder of {blocks} blocks")
            return list(itertools.accumulate(self.counts))
        slopes = [2 * i / (blocks - 1) - 1 if blocks > 1 else 0.0 for i in range(blocks)]
        shape = [1 + self.inflection * slope for slope in slopes]  # mean 1
        if self.r is not None:
            return list(itertools.accumulate(int(self.r * share) for share in shape))
        keep = max(1, round(keep_ratio * patches))
        planned = [round((patches - keep) * done / blocks) for done in itertools.accumulate(shape)]
        # A block halves at most: what the later ones cannot do must be done before.
        return [max(gone, patches - keep * 2 ** (blocks - 1 - block)) for block, gone in enumerate(planned)]


@register("schedule", "sites")
@dataclass
class Sites(Schedule):
    """Cuts at several sites, in equal steps whose product is the keep ratio; by default in the encoder and the decoder.

    Args:
        vision: blocks of the encoder, as fractions of those that count.
        at_input: whether there is one before decoder layer 0.
        decoder: layers of the decoder, as fractions of its depth.
        last: the share that the last cut leaves of what stood before it; by default its equal step.
    """

    vision: list[float] | None = field(default_factory=lambda: [0.5])
    at_input: bool = False
    decoder: list[float] | None = field(default_factory=lambda: [0.25])
    last: float | None = None

    def __post_init__(self) -> None:
        for name, places in (("vision", self.vision), ("decoder", self.decoder)):
            for place in places or ():
                check_fraction(name, place)
            if any(b <= a for a, b in itertools.pairwise(places or ())):
                raise PrunekitError(f"schedule.{name} must be a rising list, not {places}")
        if not self._count():
            raise PrunekitError("schedule 'sites' names no cut: set vision, at_input or decoder")
        if self.last is not None and (not 0 < self.last <= 1 or self._count() < 2):
            raise PrunekitError(f"schedule.last must lie in (0, 1], behind another cut, not {self.last}")
        present = {"vision": bool(self.vision), "input": self.at_input, "decoder": bool(self.decoder)}
        self.sites = tuple(site for site, cuts in present.items() if cuts)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        shares = self._shares(keep_ratio)[len(self.vision or ()) :]
        first = (Cut(0, shares[0], "input"),) if self.at_input else ()
        layers = [cut.layer for cut in Progressive(depths=self.decoder).cuts(depth, 0.5)] if self.decoder else []
        return first + tuple(Cut(layer, share) for layer, share in zip(layers, shares[len(first) :], strict=True))

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[Cut, ...]:
        places = block_places(self.vision or [], blocks)
        shares = self._shares(keep_ratio)
        return tuple(Cut(place, share, "vision") for place, share in zip(places, shares, strict=False))

    def _shares(self, keep_ratio: float) -> list[float]:
        """Share of the original tokens after each cut."""
        if self.last is None:
            return cumulative_shares(None, self._count(), keep_ratio)
        return [*cumulative_shares(None, self._count() - 1, min(1.0, keep_ratio / self.last)), keep_ratio]

    def _count(self) -> int:
        return len(self.vision or ()) + int(self.at_input) + len(self.decoder or ())


def block_places(fractions: list[float], blocks: int, fewer: bool = False) -> list[int]:
    """The encoder blocks at fractions of the first ``blocks``; where two fall on the same, it is one if ``fewer`` is
    allowed, else an error.

    Raises:
        PrunekitError: where fractions fall on the same block, unless ``fewer``.
    """
    places = [min(blocks - 1, round(fraction * blocks)) for fraction in fractions]
    if fewer:
        return list(dict.fromkeys(places))
    if any(b <= a for a, b in itertools.pairwise(places)):
        raise PrunekitError(f"schedule: fractions {fractions} fall on the same of {blocks} blocks: {places}")
    return places


@register("scorer", "cls")
@dataclass
class ClsScorer(RowScorer):
    """Attention of the encoder's CLS token to each patch, mean over heads (EViT, FasterVLM, VisionZip).

    Inside the encoder that of the block itself; later that of the block whose output the projector reads. Encoders
    without a CLS token (SigLIP, Qwen-VL's): what a patch receives from all patches on average.
    """

    sites = ("vision", "input", "decoder")
    uses_attention = False
    uses_vision = True

    @property
    def query_set(self) -> str:
        return "cls"

    def score_rows(self, rows: torch.Tensor, view: View) -> torch.Tensor:
        return view.visual(rows.mean((1, 2)))

    def score(self, view: View) -> torch.Tensor:
        if view.site == "vision":
            return encoder_attention(view)  # type: ignore[arg-type]
        scores = view.once("cls", view.vision.attention)  # type: ignore[attr-defined]
        return scores.masked_fill(~view.vision.exists, -torch.inf)  # type: ignore[attr-defined]


def encoder_attention(view: EncoderView) -> torch.Tensor:
    """Head-mean attention [T, P] that patches get in a block: from the CLS token, without one from all on average."""
    assert view.inputs is not None
    return view.visual(received(view.inputs, 0 if view.has_cls else None))


@register("scorer", "by_site")
@dataclass
class BySite(Scorer):
    """Another scorer at each site, by name, with its own defaults; for schedules that cut at several.

    Args:
        vision, input, decoder: names of scorers.
    """

    vision: str = "cls"
    input: str = "cls"
    decoder: str = "instruction"

    sites = ("vision", "input", "decoder")
    works_without_attention = True  # before layer 0 the input's scorer answers

    def __post_init__(self) -> None:
        self._scorers: dict[str, Scorer] = {}
        for site in self.sites:
            scorer = registry.create("scorer", getattr(self, site))
            if site not in scorer.sites:
                raise PrunekitError(f"scorer '{getattr(self, site)}' cannot work at site={site}")
            self._scorers[site] = scorer

    @property
    def uses_attention(self) -> bool:  # type: ignore[override]
        return self._scorers["decoder"].uses_attention

    @property
    def uses_vision(self) -> bool:  # type: ignore[override]
        return any(self._scorers[site].uses_vision for site in ("input", "decoder"))

    @property
    def reads_question(self) -> bool:  # type: ignore[override]
        return self._scorers["input"].reads_question

    def score(self, view: View) -> torch.Tensor:
        return self._scorers[view.site].score(view)  # type: ignore[arg-type]
