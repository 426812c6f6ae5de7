"""What the engine is to do, as data: which tokens go before which layer, who decides it, and on what evidence.

A plan is made by ``pruning.planner`` from a pruner and a model; nothing here knows either. In a test it can be written
by hand:

    Plan(scorer=..., fusion=..., selector=..., reducer=..., depth=6,
         cuts={2: CutPlan(layer=2, evidence=(1,))}, quota=lambda layer, visual, length: 5)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prunekit.components.base import Fusion, Reducer, Schedule, Scorer, Selector

Quota = Callable[[int, int, int], int]
"""(layer of a cut, visual tokens of a sample, tokens of its prompt) -> how many of the visual tokens stay after it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components that decide a cut; ``positions`` is "keep" or "renumber"."""

    scorer: Scorer
    fusion: Fusion
    selector: Selector
    reducer: Reducer
    positions: str = "keep"

    @property
    def uses_values(self) -> bool:
        """Whether a component reads the values of attention."""
        return any(part.uses_values for part in (self.scorer, self.fusion, self.selector, self.reducer))

    @property
    def uses_unrotated(self) -> bool:
        """Whether a component reads queries or keys as they were before the rotary embedding."""
        return any(part.uses_unrotated for part in (self.scorer, self.fusion, self.selector, self.reducer))

    @property
    def counted_layers(self) -> frozenset[int]:
        """Layers whose attention says how many tokens stay; none in an encoder."""
        return frozenset()


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """One cut in the decoder.

    Attributes:
        layer: the layer before which tokens go; a cut at the input is one before layer 0.
        evidence: the layers whose evidence decides it.
        site: "decoder" or "input".
    """

    layer: int
    evidence: tuple[int, ...] = ()
    site: str = "decoder"


@dataclass(frozen=True, kw_only=True)
class EncoderPlan(Parts):
    """What happens in the vision encoder.

    Attributes:
        counts: by block, the patches of an image that stay after the cut inside it.
        evidence: by block of a cut, the blocks that decide it.
        grid: what the image itself is shrunk to before, in patches; None leaves it.
        cuts_inside: whether the schedule names a cut here at all, even one that removes nothing on this encoder.
        noted_blocks: blocks whose queries and keys are kept for ``view.vision``.
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    evidence: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    cuts_inside: bool = False
    noted_blocks: frozenset[int] = frozenset()

    @property
    def evidence_blocks(self) -> frozenset[int]:
        """All blocks from which evidence is taken."""
        return frozenset(block for blocks in self.evidence.values() for block in blocks)


@dataclass(frozen=True, kw_only=True)
class Plan(Parts):
    """What is removed from one decoder.

    Attributes:
        depth: decoder layers.
        cuts: by layer, in order.
        quota: how many tokens stay after each.
        encoder: what happens in the vision encoder; None where it is left alone.
        notes_media: whether a component reads ``view.places``.
        adaptive: the schedule, where the counts of its cuts depend on the sample.
    """

    depth: int
    cuts: Mapping[int, CutPlan]
    quota: Quota
    encoder: EncoderPlan | None = None
    notes_media: bool = False
    adaptive: Schedule | None = None

    @property
    def cut_layers(self) -> tuple[int, ...]:
        """The layers before which tokens go, in order."""
        return tuple(self.cuts)

    @property
    def cuts_inside_encoder(self) -> bool:
        """Whether tokens may go inside the vision encoder."""
        return self.encoder is not None and self.encoder.cuts_inside

    @property
    def weighs_attention(self) -> bool:
        """Whether the decoder's attention is weighted by the sizes of what was merged in it."""
        return self.reducer.proportional_attention and bool(self.cuts)

    @property
    def first_layer(self) -> int:
        """The first layer that may see fewer tokens."""
        return 0 if self.cuts_inside_encoder else self.cut_layers[0]

    @property
    def evidence_layers(self) -> frozenset[int]:
        """All layers from which evidence is taken."""
        return frozenset(layer for cut in self.cuts.values() for layer in cut.evidence)

    def evidence_after(self, layer: int) -> frozenset[int]:
        """Layers whose evidence cuts behind the one before ``layer`` read."""
        return frozenset(seen for cut in self.cuts.values() if cut.layer > layer for seen in cut.evidence)

    @property
    def counted_layers(self) -> frozenset[int]:
        last = [cut.evidence[-1] for cut in self.cuts.values() if cut.evidence]
        return frozenset(last if self.selector.adapts_count else last[:1] if self.adaptive is not None else ())
