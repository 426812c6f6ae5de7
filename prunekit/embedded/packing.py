"""Several questions about one image in one sequence.

Layout of a row: prefix, visual tokens, then the questions one after another. Every question sees prefix, image and
itself only, and its positions start right after the image, so each is computed as if it stood alone, exactly as the
processor's chat template would lay it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from prunekit.embedded.processor import ASSISTANT, BOS, EOS, SYSTEM, USER

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
    """Rows of packed questions; T text positions after the image."""

    ids: torch.Tensor  # long [B, T]
    segment: torch.Tensor  # long [B, T]: which question of the row, -1 for padding
    position: torch.Tensor  # long [B, T]: 0 at a question's first token
    labels: torch.Tensor  # long [B, T]: the next token where it belongs to an answer, else IGNORE
    tasks: list[list[str]]  # of each row's questions
    prompt: torch.Tensor  # bool [B, T]: question and assistant's mark, not the answer


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


def pack(rows: Sequence[Sequence[Asked]], length: int, pad: int) -> Packed:
    """Packs each row's questions into ``length`` positions; questions that no longer fit are left out."""
    shape = (len(rows), length)
    ids, position = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    segment, labels = torch.full(shape, -1), torch.full(shape, IGNORE)
    prompt = torch.zeros(shape, dtype=torch.bool)
    tasks: list[list[str]] = []
    for row, questions in enumerate(rows):
        start = 0
        kept: list[str] = []
        for question in questions:
            tokens = (*question.prompt, *question.answer[:-1])
            stop = start + len(tokens)
            if stop > length:
                continue
            ids[row, start:stop] = torch.tensor(tokens)
            segment[row, start:stop] = len(kept)
            position[row, start:stop] = torch.arange(len(tokens))
            first = start + len(question.prompt) - 1  # the assistant's mark predicts the first answer token
            labels[row, first:stop] = torch.tensor(question.answer)
            prompt[row, start : first + 1] = True
            kept.append(question.task)
            start = stop
        tasks.append(kept)
    return Packed(ids, segment, position, labels, tasks, prompt)


def block_mask(segment: torch.Tensor, prefix: int, visual: int) -> torch.Tensor:
    """Who sees whom: bool [B, S, S], S = prefix + visual + T."""
    batch, length = segment.shape
    head = prefix + visual
    allowed = torch.zeros(batch, head + length, head + length, dtype=torch.bool)
    allowed[:, :head, :head] = torch.ones(head, head, dtype=torch.bool).tril()
    allowed[:, head:, :head] = True
    same = segment[:, :, None] == segment[:, None, :]
    allowed[:, head:, head:] = same & torch.ones(length, length, dtype=torch.bool).tril()
    return allowed


def positions(packed: Packed, prefix: int, visual: int) -> torch.Tensor:
    """Position ids [B, S]; every question's start right after the image."""
    head = torch.arange(prefix + visual).expand(len(packed.ids), -1)
    return torch.cat([head, packed.position + prefix + visual], dim=1)
