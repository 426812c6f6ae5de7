"""Many questions about one image in one row.

Layout of a row: prefix, visual tokens, then text in chunks. A chunk holds whole questions; every question sees prefix,
image and itself only, and its positions start right after the image, so each is computed as if it stood alone,
exactly as the processor's chat template would lay it out. B rows, C chunks of T text positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedTokenizerFast

from tools.embedded.processor import ASSISTANT, BOS, EOS, SYSTEM, USER

PREFIX = f"{BOS}{' '.join(SYSTEM)}{USER}"
IGNORE = -100


@dataclass(frozen=True)
class Asked:
    """A question in tokens: ``prompt`` ends with the assistant's mark, ``answer`` with the end of sequence."""

    task: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass
class Packed:
    """Rows of packed questions."""

    ids: torch.Tensor  # long [B, C, T]
    segment: torch.Tensor  # long [B, C, T]: which question of the row, -1 for padding
    position: torch.Tensor  # long [B, C, T]: 0 at a question's first token
    labels: torch.Tensor  # long [B, C, T]: the next token where it belongs to an answer, else IGNORE
    prompt: torch.Tensor  # bool [B, C, T]: question and assistant's mark, not the answer
    tasks: list[list[str]]  # of each row's questions

    def rows(self, rows: slice) -> Packed:
        """Some of the rows."""
        return Packed(*(getattr(self, field.name)[rows] for field in fields(self)))


def encode(tokenizer: PreTrainedTokenizerFast, asked: Sequence[tuple[str, str, str]]) -> list[Asked]:
    """Tokens of (task, question, answer) triples."""
    if not asked:
        return []
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, EOS])
    prompts = tokenizer([question for _, question, _ in asked], add_special_tokens=False).input_ids
    answers = tokenizer([answer for _, _, answer in asked], add_special_tokens=False).input_ids
    return [
        Asked(task, (*prompt, assistant), (*answer, end))
        for (task, _, _), prompt, answer in zip(asked, prompts, answers, strict=True)
    ]


def pack(rows: Sequence[Sequence[Asked]], chunks: int, length: int, pad: int) -> Packed:
    """Puts each row's questions, in order, into the first of ``chunks`` with room; others are left out."""
    shape = (len(rows), chunks, length)
    ids, position = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    segment, labels = torch.full(shape, -1), torch.full(shape, IGNORE)
    prompt = torch.zeros(shape, dtype=torch.bool)
    tasks: list[list[str]] = []
    for row, questions in enumerate(rows):
        filled = [0] * chunks
        kept: list[str] = []
        for question in questions:
            tokens = (*question.prompt, *question.answer[:-1])
            chunk = next((c for c in range(chunks) if filled[c] + len(tokens) <= length), None)
            if chunk is None:
                continue
            start = filled[chunk]
            filled[chunk] = stop = start + len(tokens)
            ids[row, chunk, start:stop] = torch.tensor(tokens)
            segment[row, chunk, start:stop] = len(kept)
            position[row, chunk, start:stop] = torch.arange(len(tokens))
            first = start + len(question.prompt) - 1  # the assistant's mark predicts the first answer token
            labels[row, chunk, first:stop] = torch.tensor(question.answer)
            prompt[row, chunk, start : first + 1] = True
            kept.append(question.task)
        tasks.append(kept)
    return Packed(ids, segment, position, labels, prompt, tasks)


def own_mask(segment: torch.Tensor) -> torch.Tensor:
    """Which text a text position sees, its own question up to itself: bool [B, C, T, T]."""
    same = segment[..., :, None] == segment[..., None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


def positions(packed: Packed, head: int) -> torch.Tensor:
    """Position ids [B, S] behind ``head`` positions of prefix and image; every question's start right after them."""
    first = torch.arange(head).expand(len(packed.ids), -1)
    return torch.cat([first, packed.position.flatten(1) + head], dim=1)
