"""From examples to training batches: prompt and answer in one left-padded sequence, labels on the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from prunekit import ranks
from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.models import LoadedModel

IGNORE = -100


class Examples(Dataset[Example]):
    """Examples that can be learned from.

    Raises:
        PrunekitError: naming the first that has no answer; and for none at all.
    """

    def __init__(self, examples: Sequence[Example], data: str) -> None:
        usable = [e for e in examples if not getattr(e, "error", "")]
        for example in usable:
            if not any(answer.strip() for answer in example.answers[:1]):
                raise PrunekitError(f"data '{data}': example '{example.id}' has no answer to learn from")
        left_out = [e.error for e in examples if getattr(e, "error", "")]
        if not usable:
            why = f"; {left_out[0]}" if left_out else ""
            raise PrunekitError(f"data '{data}': no examples to learn from{why}")
        if left_out and ranks.is_first():
            print(f"data '{data}': {len(left_out)} of {len(left_out) + len(usable)} rows left out: {left_out[0]}")
        self.examples = usable

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class Collator:
    """Examples to model inputs with ``labels`` [B, S] (``IGNORE`` but for answers and the end behind them) and ``ids``.

    The prompt is that of evaluation; the answer's tokens follow it as generation would have to give them.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.batcher = loaded, Batcher(loaded)
        self.tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        end = getattr(loaded.model.generation_config, "eos_token_id", None)
        end = self.tokenizer.eos_token_id if end is None else end
        self.end: list[int] = [] if end is None else [end[0] if isinstance(end, list | tuple) else end]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """One batch, on the CPU."""
        tensors = dict(self.batcher.encoded(examples))
        answers = [self.answer(e) for e in examples]
        shape, mask = tensors["input_ids"].shape, tensors["attention_mask"]
        fills = {"input_ids": self.tokenizer.pad_token_id or 0}
        labels = _behind(torch.full(shape, IGNORE), mask, answers, IGNORE)
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.shape == shape and name != "attention_mask":
                tokens = answers if name == "input_ids" else [[0] * len(answer) for answer in answers]
                tensors[name] = _behind(value, mask, tokens, fills.get(name, 0))
        tensors["attention_mask"] = _behind(mask, mask, [[1] * len(answer) for answer in answers], 0)
        return {**tensors, "labels": labels, "ids": [e.id for e in examples]}

    def answer(self, example: Example) -> list[int]:
        """Token ids of the first accepted answer, and the end of the sequence."""
        return [*self.tokenizer(example.answers[0], add_special_tokens=False).input_ids, *self.end]


def _behind(values: torch.Tensor, mask: torch.Tensor, tails: Sequence[list[int]], fill: int) -> torch.Tensor:
    """The real entries of ``values`` [B, P] (``mask`` [B, P]) with a tail behind each row, padded to the left."""
    rows = [
        torch.cat([row[real.bool()], row.new_tensor(tail)]) for row, real, tail in zip(values, mask, tails, strict=True)
    ]
    size = max(len(row) for row in rows)
    return torch.stack([torch.cat([row.new_full((size - len(row),), fill), row]) for row in rows])
