"""What one prefill remembers: made when it starts, gone when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from prunekit.engine.evidence import Evidence
from prunekit.engine.precision import in_float32
from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens, on_device, scatter_where
from prunekit.tensors.sequences import CompactSequence, PromptLayout
from prunekit.views.doubts import Doubt
from prunekit.views.layer import LayerView, PrefillContext, Regions
from prunekit.views.media import MediaRecord
from prunekit.views.trace import CutRecord
from prunekit.views.vision import VisionView


@dataclass
class Gates:
    """The gates of one forward pass in training.

    Attributes:
        product: of the gates of its cuts so far, [B, N].
        bias: its logarithm on the dense sequence, [B, S]; None before any cut.
    """

    product: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass
class Prefill:
    """State of one prefill, from the model's first layer to its last; letters as in ``tensors.sequences``.

    Attributes:
        layout: the dense sequence.
        sequence: the one that the running layer processes.
        kept: visual tokens that remain, bool [B, N].
        slots: where they stand in it, long [B, N]; arbitrary where not ``kept``.
        regions: where the answer of each sample is, if the caller said so.
        prompt_known: whether the caller said where the prompt ends.
        cuts: the cuts so far.
        sequences: those of each layer so far.
        evidence: what layers said that later cuts read.
        doubts: what may be wrong with the components' answers.
        hidden: input [B, M, D] of the running layer, where it is one of evidence.
        sizes: how many tokens each visual token stands for, [B, N]; None while all stand for one.
        cut_slots: the slots [B, M] that the present ones were before the latest cut, None before any.
        arguments: arguments of layers made for a sequence, beside what they were made of.
        notes: what views make once for all layers (``View.once``).
        inputs_embeds: what entered layer 0, [B, S, D].
        vision: the encoder's side of the visual tokens, where a component reads it.
        inputs: keyword arguments of the core model, where its media are noted.
        media: its images and videos, where a component asks where their tokens stand.
        positions: position ids [1 or B, S] (M-RoPE: triples) as the model gave them to its rotary embedding.
        gates: of a gated pass in training.
        counts: tokens of each sample that stay after each cut, once a schedule that adapts has said so.
    """

    layout: PromptLayout
    sequence: CompactSequence
    kept: torch.Tensor
    slots: torch.Tensor
    regions: Regions | None = None
    prompt_known: bool = False
    cuts: list[CutRecord] = field(default_factory=list)
    sequences: list[CompactSequence] = field(default_factory=list)
    evidence: Evidence = field(default_factory=Evidence)
    doubts: list[Doubt] = field(default_factory=list)
    hidden: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    cut_slots: torch.Tensor | None = None
    arguments: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    counts: Mapping[int, Sequence[int]] | None = None
    inputs_embeds: torch.Tensor | None = None
    vision: VisionView | None = None
    inputs: dict[str, object] = field(default_factory=dict)
    media: MediaRecord | None = None
    positions: torch.Tensor | None = None
    gates: Gates | None = None

    @classmethod
    def begin(cls, layout: PromptLayout, regions: Regions | None = None, prompt_known: bool = False) -> Prefill:
        """The dense start: everything stands. ``regions`` of fewer samples than there are (beams) are repeated.

        Raises:
            PrunekitError: for regions of a number of samples that does not divide the batch.
        """
        state = cls(
            layout,
            CompactSequence(0, None, None, layout.lengths),
            layout.exists,
            layout.visual_index,
            prompt_known=prompt_known,
        )
        if regions is not None:
            repeats, rest = divmod(len(layout.counts), len(regions))
            if rest or not repeats:
                raise PrunekitError(f"regions of {len(regions)} samples do not fit a batch of {len(layout.counts)}")
            state.regions = [boxes for boxes in regions for _ in range(repeats)]
        return state

    def view(self, layer: int, hidden: torch.Tensor, grid: tuple[int, int] | None, site: str = "decoder") -> LayerView:
        """What a scorer sees of ``layer`` and its input ``hidden`` [B, M, D] now, on the device of that layer."""
        (hidden,) = in_float32(hidden)
        alive_BN, slots_BN = self.kept.to(hidden.device), self.slots.to(hidden.device)
        context = PrefillContext(self.inputs_embeds, self.regions, self.vision, self.media)
        layout, sequence = self.layout, self.sequence
        return LayerView(
            hidden, layer, layout, sequence, alive_BN, slots_BN, grid, context=context, site=site, notes=self.notes
        )

    def removed(self, sequence: CompactSequence) -> torch.Tensor:
        """How many real tokens of each sample are missing in a sequence, [B]; made once for all of its layers."""
        key = ("removed", sequence.number)
        if key not in self.arguments:
            gone = [dense - now for dense, now in zip(self.layout.lengths, sequence.lengths, strict=True)]
            self.arguments[key] = (None, on_device(gone, self.layout.real.device))
        return self.arguments[key][1]

    def shorten(self, kept: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Go to the next sequence, where of the visual tokens only ``kept`` [B, N] stands: surviving slots [B, M]."""
        layout, sequence = self.layout, self.sequence
        stays_BM = layout.present if sequence.index is None else layout.present.gather(1, sequence.index)
        if sequence.valid is not None:
            stays_BM = stays_BM & sequence.valid
        goes_BN = self.kept & ~kept
        stays_BM = stays_BM & ~scatter_where(goes_BN, self.slots, goes_BN, stays_BM.shape[1])
        slots_BM, self.sequence = sequence.compact(stays_BM, lengths, layout.extra)
        self.kept, self.cut_slots = kept, slots_BM
        # The new slot of an old one: how many slots before it stay, after the padding.
        slot_BM = stays_BM.cumsum(1) - 1 + slots_BM.shape[1] - stays_BM.sum(1, keepdim=True)
        self.slots = slot_BM.clamp(min=0).gather(1, self.slots).masked_fill(~kept, 0)
        return slots_BM

    def weigh(self) -> None:
        """Give the sequence the logarithms of its visual tokens' sizes, for its layers' attention."""
        assert self.sizes is not None and self.sequence.index is not None
        sizes_BN = self.sizes.to(self.slots.device)
        self.doubts.append(Doubt("a reducer's sizes that are not above 0", ((sizes_BN <= 0) & self.kept).any(1)))
        logs_BM = scatter_where(sizes_BN.log(), self.slots, self.kept, self.sequence.index.shape[1])
        logs_BS = scatter_where(logs_BM, self.sequence.index, self.sequence.valid, self.layout.real.shape[1])
        self.sequence = replace(self.sequence, log_sizes=logs_BS)

    def rearrange(self, ranks: torch.Tensor) -> torch.Tensor:
        """Reorder the visual slots so that the tokens of an image follow each other by ``ranks`` [B, N], then by place:
        where each slot [B, M] takes its content from. The slots keep their own places, so this is for positions
        without gaps."""
        ranks_BN = ranks.to(self.slots.device)
        image_BN = self.layout.image.to(ranks_BN.device)
        spare = self.layout.real.shape[1]
        # Slots of an image are contiguous in both orders, so sorting the kept ones alone is a permutation of them.
        order_BN = (image_BN * (ranks_BN.amax() + 1) + ranks_BN) * (spare + 1) + self.slots
        number_BN = order_BN.masked_fill(~self.kept, torch.iinfo(order_BN.dtype).max).argsort(dim=1, stable=True)
        shared_BN = self.slots.masked_fill(~self.kept, spare).sort(dim=1).values  # the slots they share, in order
        slot_BN = torch.empty_like(self.slots).scatter(1, number_BN, shared_BN)
        assert self.sequence.index is not None
        batch, size = self.sequence.index.shape
        longer = torch.arange(spare + 1, device=ranks_BN.device).expand(batch, -1)  # whose last slot takes the rest
        source_BM = longer.scatter(1, slot_BN, self.slots.masked_fill(~self.kept, spare))[:, :size]
        self.slots = slot_BN.masked_fill(~self.kept, 0)
        assert self.cut_slots is not None
        self.cut_slots = self.cut_slots.gather(1, source_BM)
        return source_BM


def gather_argument(name: str, value: object, index: torch.Tensor, size: int) -> Any:
    """A per-token keyword of a decoder layer, at the dense positions ``index`` [B, M]; others pass unchanged.

    ``position_embeddings`` hold tokens on their second last axis, ``position_ids`` on their last, anything else that
    has [B or 1, S, ...] on its second, or [B or 1, 1, S, ...] on its third. A batch axis of 1 is expanded.
    """
    if isinstance(value, tuple | list):
        return type(value)(gather_argument(name, v, index, size) for v in value)
    if isinstance(value, dict):
        return {key: gather_argument(name, v, index, size) for key, v in value.items()}
    if not isinstance(value, torch.Tensor) or value.ndim < 2:
        return value
    axis = {"position_embeddings": value.ndim - 2, "position_ids": value.ndim - 1}.get(name, 1)
    if axis == 1 and value.ndim == 4 and value.shape[1:3] == (1, size) and len(value) in (1, len(index)):
        return gather_argument(name, value[:, 0], index, size)[:, None]  # an axis of heads in front of the tokens
    if value.shape[axis] != size or value.shape[axis - 1] not in (1, index.shape[0]):
        return value
    shape = list(value.shape)
    shape[axis - 1] = index.shape[0]
    return gather_tokens(value.expand(shape), index, axis)
