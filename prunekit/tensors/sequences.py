"""Where things stand in a batch: the dense sequence of one prefill, and the compact one after a cut.

A token has several numbers, and this is what the words for them mean everywhere in the engine:

=============  ======================================================================================================
dense index    place in the sequence that the model was given, 0 … S-1, padding counted. ``CompactSequence.index``
               [B, M] has that of every slot, and cached keys remember theirs
slot           place in the compact sequence that a layer processes, 0 … M-1. Slot = dense index until something goes
visual number  the how-manieth visual token of its sample, 0 … N-1. Scores, masks of what stays and sources are [B, N]
               in this order, whatever went; ``PromptLayout.visual_index`` [B, N] has their dense indices, and
               ``Prefill.slots`` [B, N] where they stand now
=============  ======================================================================================================

Of these, masks say: ``real``, a dense index that is no padding; ``exists``, a visual number that its sample has;
``valid``, a slot in use (the compact rows of a batch are padded too, at the start); ``alive``, a visual token that
still stands when a layer begins; ``kept``, one that stays after the cut at hand, and ``stays``, kept or added by a
reducer.

Letters of shapes, here and in all tensor code, where a suffix names a local tensor's axes (``kept_BN``; 1 is an axis
of one entry, and what the suffix leaves out is a shape that differs from call to call):

==  ==========================================  ==  ==================================================================
B   samples                                     Q   query rows
S   dense indices                               K   keys
M   slots, or entries of any other index        H   heads, or 1 where all share one mask
N   visual numbers                              d   width of a head
D   width of a token                            L   layers
T   images or tiles in the vision encoder       R   rows of the projector, those of all images after each other
P   patches of an image                         C   width of the encoder
==  ==========================================  ==  ==================================================================

A component sees one sequence alone, that of its layer, and so do attention rows: S stands for its slots there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import ragged_index, scatter_where


def repeated(ids: torch.Tensor, embeds: torch.Tensor | None) -> torch.Tensor | None:
    """Token ids [B, S] as they stand behind embeddings [R·B, S, D] that were made of them: ``generate`` repeats each
    sample for its beams and sequences. None for embeddings of another shape."""
    if embeds is None or ids.shape[1] != embeds.shape[1]:
        return None
    repeats, rest = divmod(embeds.shape[0], ids.shape[0])
    return ids.repeat_interleave(repeats, 0) if repeats and not rest else None


def real_tokens(
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor | None] | None, visual: torch.Tensor
) -> torch.Tensor:
    """Which tokens are no padding, bool [B, S], by the shape of ``visual`` [B, S].

    A 2-D mask says it itself. In a 4-D one [B or 1, 1|H, S, S], bool or additive, padding is what does not see itself;
    of several, by the kind of layer, full attention's counts.

    Raises:
        PrunekitError: for a mask of another shape.
    """
    if isinstance(attention_mask, Mapping):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if attention_mask is None:
        return torch.ones_like(visual)
    mask = attention_mask
    if mask.ndim == 4 and mask.shape[2] == mask.shape[3]:
        diagonal = mask[:, 0].diagonal(dim1=1, dim2=2)
        opened = diagonal if mask.dtype == torch.bool else diagonal > torch.finfo(torch.float16).min / 2
        mask = opened.expand(visual.shape[0], -1)
    if mask.shape != visual.shape:
        raise PrunekitError(f"attention_mask has shape {tuple(attention_mask.shape)}, the prompt {tuple(visual.shape)}")
    return mask.bool().to(visual.device)


MARK = "mark its tokens: pruner(model, prompt=mask), or labels of -100"


@dataclass(frozen=True)
class PromptLayout:
    """The dense sequence of a prefill. Shapes: [B, S] per token, [B, N] per visual token in sequence order.

    ``visual`` marks the visual tokens among the real ones, ``visual_index`` has their dense indices, 0 where
    ``exists`` is False, which pads samples that have fewer.

    ``prompt`` marks the real tokens that may decide what stays: all of them, or those before an answer or a draft that
    stands in the same sequence. ``words`` marks the instruction: the prompt's non-visual tokens after the first
    visual one (a sample without any falls back to the last token of its prompt, with a warning). ``counts`` holds N
    of each sample, ``lengths`` its real tokens, ``prompt_lengths`` those of its prompt. ``present`` marks what a
    shortened sequence carries on: the real tokens, and the last position even where it is padding, because generation
    reads its logits; ``extra`` is 1 for samples where that adds a slot. ``input_ids`` is None for a prompt given as
    embeddings.
    """

    input_ids: torch.Tensor | None
    real: torch.Tensor
    visual: torch.Tensor
    words: torch.Tensor
    visual_index: torch.Tensor
    exists: torch.Tensor
    present: torch.Tensor
    prompt: torch.Tensor
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    text_counts: tuple[int, ...]
    extra: tuple[int, ...]

    @classmethod
    def build(
        cls,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor | None] | None,
        visual: torch.Tensor,
        prompt: torch.Tensor | None = None,
    ) -> PromptLayout:
        """From token ids [B, S], the attention mask (``real_tokens``), the visual placeholders [B, S] and what of the
        sequence is prompt [B, S] (None: everything).

        Raises:
            PrunekitError: for a batch whose mask hides all visual tokens, and for a sample whose visual tokens stand
                behind the end of its prompt.
        """
        real_BS = real_tokens(attention_mask, visual)
        visual_BS = visual & real_BS
        prompt_BS = real_BS if prompt is None else real_BS & prompt
        text_BS = prompt_BS & ~visual_BS & (visual_BS.cumsum(1) > 0)
        behind_BS = visual_BS & (prompt_BS.flip(1).cumsum(1).flip(1) == 0)
        # The one look at the data on the host: how long each sample is, and how much of it is visual.
        sums = [mask.sum(1) for mask in (visual, visual_BS, real_BS, text_BS, prompt_BS, behind_BS, ~real_BS[:, -1:])]
        marked, counts, lengths, text_counts, prompt_lengths, behind, extra = map(tuple, torch.stack(sums).tolist())
        if any(marked) and not any(counts):
            raise PrunekitError("attention_mask hides every placeholder: there is no visual token to prune")
        if behind_end := [b for b, n in enumerate(behind) if n and prompt_lengths[b]]:
            raise PrunekitError(f"samples {behind_end} have visual tokens behind the end of their prompt; {MARK}")
        present_BS = real_BS.clone()
        present_BS[:, -1] = True
        samples = enumerate(zip(counts, text_counts, prompt_lengths, strict=True))
        lonely = [b for b, (n, words, length) in samples if n and length and not words]
        if lonely:
            warnings.warn(f"no text after the image in samples {lonely}: their last token stands in", stacklevel=2)
            text_BS = text_BS.clone()
            last_B = (prompt_BS * torch.arange(1, real_BS.shape[1] + 1, device=real_BS.device)).argmax(1)
            text_BS[lonely, last_B[lonely]] = True
            text_counts = tuple(max(t, int(b in lonely)) for b, t in enumerate(text_counts))
        index_BN, exists_BN = ragged_index(visual_BS, max(counts))
        return cls(
            input_ids, real_BS, visual_BS, text_BS, index_BN, exists_BN, present_BS, prompt_BS,
            counts, lengths, prompt_lengths, text_counts, extra,
        )  # fmt: skip

    @property
    def text(self) -> torch.Tensor:
        """The instruction, bool [B, S]: ``words``, for those who look at them. Raises as ``check_prompt``."""
        self.check_prompt()
        return self.words

    def check_prompt(self) -> None:
        """Raise if nothing of a sample is prompt: only what looks at no words can choose among its visual tokens."""
        empty = [
            b for b, (n, length) in enumerate(zip(self.counts, self.prompt_lengths, strict=True)) if n and not length
        ]
        if empty:
            raise PrunekitError(f"samples {empty} have no prompt that could say which visual tokens matter; {MARK}")

    @property
    def image(self) -> torch.Tensor:
        """Number of the run of neighbouring visual tokens (an image, or a row of one) of each, long [B, N]."""
        starts_BS = self.visual & ~torch.nn.functional.pad(self.visual[:, :-1], (1, 0))
        return starts_BS.cumsum(1).gather(1, self.visual_index)


@dataclass(frozen=True)
class CompactSequence:
    """The sequence that a run of layers processes: the dense one, or what cuts have left of it.

    Attributes:
        number: of cuts before it.
        index: dense index of each slot, long [B, M]; None for the dense sequence itself.
        valid: slots in use, bool [B, M]; None if all are.
        lengths: real tokens of each sample.
        log_sizes: what its layers add to the logits of the key at each dense index, [B, S]; None for nothing.
    """

    number: int
    index: torch.Tensor | None
    valid: torch.Tensor | None
    lengths: tuple[int, ...]
    log_sizes: torch.Tensor | None = None

    def present(self, size: int) -> torch.Tensor:
        """Dense positions that stand in this sequence, bool [B, size]."""
        assert self.index is not None
        valid_BM = torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid
        return scatter_where(valid_BM, self.index, valid_BM, size)

    def slots_in(self, source: CompactSequence, size: int) -> torch.Tensor:
        """Where the slots of this sequence stand in an earlier one, [B, M]."""
        assert self.index is not None
        if source.index is None:
            return self.index
        slots_BM = torch.arange(source.index.shape[1], device=self.index.device).expand_as(source.index)
        slot_BS = scatter_where(slots_BM, source.index, source.valid, size)
        return slot_BS.gather(1, self.index)

    def compact(
        self, stays: torch.Tensor, lengths: tuple[int, ...], extra: tuple[int, ...]
    ) -> tuple[torch.Tensor, CompactSequence]:
        """Drop the slots outside ``stays`` [B, M]: the surviving slots [B, M'] and the sequence they form."""
        sizes = [length + more for length, more in zip(lengths, extra, strict=True)]
        # Padding goes to the start: a recurrent layer must end on a real token.
        slots_BM, valid_BM = ragged_index(stays, max(sizes), pad_left=True)
        ragged = min(sizes) < max(sizes)
        index_BM = slots_BM if self.index is None else self.index.gather(1, slots_BM)
        return slots_BM, CompactSequence(self.number + 1, index_BM, valid_BM if ragged else None, lengths)
