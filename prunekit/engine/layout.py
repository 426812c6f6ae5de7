"""Where things stand in a batch: the dense sequence of one prefill, and the compact one after a cut."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError


def ragged_index(mask: torch.Tensor, size: int, pad_left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the True entries of ``mask`` [B, S], in order: index (0 where padded) and valid, both [B, size].

    Rows with fewer entries are padded at the end, or at the start if ``pad_left``.
    """
    places, count = torch.arange(size, device=mask.device), mask.sum(1, keepdim=True)
    if pad_left:
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - size :]
        valid = places >= size - count
    else:
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        valid = places < count
    return order.masked_fill(~valid, 0), valid


def on_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Whole numbers of the host as a tensor, without making the host wait for the device."""
    if device.type == "cpu":
        return torch.tensor(values)
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], device=device)
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def take(x: torch.Tensor, index: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Gather tokens along ``axis``, which follows the batch axis: x [.., B, S, ..], index [B, M] -> [.., B, M, ..]."""
    index = index.to(x.device)  # layers of one model may live on several devices
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    if axis == 1:
        return x[rows, index]
    return x.movedim((axis - 1, axis), (0, 1))[rows, index].movedim((0, 1), (axis - 1, axis))


def repeated(ids: torch.Tensor, embeds: torch.Tensor | None) -> torch.Tensor | None:
    """Token ids [B, S] as they stand behind embeddings [R·B, S, D] that were made of them: ``generate`` repeats each
    sample for its beams and sequences. None for embeddings of another shape."""
    if embeds is None or ids.shape[1] != embeds.shape[1]:
        return None
    repeats, rest = divmod(embeds.shape[0], ids.shape[0])
    return ids.repeat_interleave(repeats, 0) if repeats and not rest else None


@dataclass(frozen=True)
class Layout:
    """The dense sequence of a prefill. Shapes: [B, S] per token, [B, N] per visual token in sequence order.

    ``text`` marks the instruction: the real, non-visual tokens after the sample's first visual token (a sample without
    any falls back to its last real token, with a warning). ``counts`` holds N of each sample, ``lengths`` its real
    tokens. ``present`` marks what a shortened sequence carries on: the real tokens, and the last position even where it
    is padding, because generation reads its logits; ``extra`` is 1 for samples where that adds a slot. ``prompt`` marks
    what scorers may look at, None for all.
    """

    input_ids: torch.Tensor
    real: torch.Tensor
    visual: torch.Tensor
    text: torch.Tensor
    visual_index: torch.Tensor
    exists: torch.Tensor
    present: torch.Tensor
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    text_counts: tuple[int, ...]
    extra: tuple[int, ...]
    prompt: torch.Tensor | None = None

    @classmethod
    def build(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        visual: torch.Tensor,
        prompt: torch.Tensor | None = None,
    ) -> Layout:
        """From token ids [B, S], the 2-D padding mask (None: all real) and the visual placeholders [B, S].

        ``prompt`` [B, S] marks what a scorer may look at where answers follow it in the sequence, as in training: their
        tokens are no instruction. None: everything.
        """
        is_padding_mask = attention_mask is not None and attention_mask.ndim == 2
        real = attention_mask.bool() if is_padding_mask else torch.ones_like(visual)  # type: ignore[union-attr]
        if real.shape != visual.shape:
            raise PrunekitError(f"attention_mask has shape {tuple(real.shape)}, input_ids {tuple(visual.shape)}")
        visual = visual & real
        asked = real if prompt is None else real & prompt
        text = asked & ~visual & (visual.cumsum(1) > 0)
        # The one look at the data on the host: how long each sample is, and how much of it is visual.
        table = torch.stack([visual.sum(1), real.sum(1), text.sum(1), (~real[:, -1]).long()]).tolist()
        counts, lengths, text_counts, extra = (tuple(row) for row in table)
        present = real.clone()
        present[:, -1] = True
        lonely = [b for b, (n, t) in enumerate(zip(counts, text_counts, strict=True)) if n and not t]
        if lonely:
            warnings.warn(f"no text after the image in samples {lonely}: their last token stands in", stacklevel=2)
            text = text.clone()
            last = (asked * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
            text[lonely, last[lonely]] = True
            text_counts = tuple(max(t, int(b in lonely)) for b, t in enumerate(text_counts))
        visual_index, exists = ragged_index(visual, max(counts))
        rest = counts, lengths, text_counts, extra, prompt
        return cls(input_ids, real, visual, text, visual_index, exists, present, *rest)

    @property
    def image(self) -> torch.Tensor:
        """Number of the run of neighbouring visual tokens (an image, or a row of one) of each, long [B, N]."""
        starts = self.visual & ~torch.nn.functional.pad(self.visual[:, :-1], (1, 0))
        return starts.cumsum(1).gather(1, self.visual_index)


@dataclass(frozen=True)
class Stage:
    """What stands in the sequence that a run of layers processes.

    ``index`` [B, M] is the dense position of each slot and ``valid`` [B, M] marks the slots in use; None means the
    dense sequence itself, and no padding. ``lengths`` counts the real tokens of each sample.
    """

    number: int
    index: torch.Tensor | None
    valid: torch.Tensor | None
    lengths: tuple[int, ...]

    def present(self, size: int) -> torch.Tensor:
        """Dense positions that stand in this stage, bool [B, size]."""
        assert self.index is not None
        index = self.index if self.valid is None else self.index.masked_fill(~self.valid, size)
        marks = torch.zeros(len(index), size + 1, dtype=torch.bool, device=index.device)
        return marks.scatter(1, index, True)[:, :size]

    def slots_in(self, source: Stage, size: int) -> torch.Tensor:
        """Where the slots of this stage stand in an earlier one, [B, M]."""
        assert self.index is not None
        if source.index is None:
            return self.index
        places = torch.arange(source.index.shape[1], device=self.index.device).expand_as(source.index)
        index = source.index if source.valid is None else source.index.masked_fill(~source.valid, size)
        spots = torch.zeros(len(index), size + 1, dtype=torch.long, device=index.device).scatter(1, index, places)
        return spots.gather(1, self.index)

    def compact(
        self, stays: torch.Tensor, lengths: tuple[int, ...], extra: tuple[int, ...]
    ) -> tuple[torch.Tensor, Stage]:
        """Drop the slots outside ``stays`` [B, M]: the surviving slots [B, M'] and the stage they form."""
        sizes = [length + more for length, more in zip(lengths, extra, strict=True)]
        # Padding goes to the start: a recurrent layer must end on a real token.
        slots, valid = ragged_index(stays, max(sizes), pad_left=True)
        ragged = min(sizes) < max(sizes)
        index = slots if self.index is None else self.index.gather(1, slots)
        return slots, Stage(self.number + 1, index, valid if ragged else None, lengths)
