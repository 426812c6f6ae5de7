"""Metrics from rows, which are looked at one by one: of each, some numbers are kept."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from prunekit.cost import encoder_saving, prefill_cost
from prunekit.data.example import Prediction
from prunekit.evaluation.vision_cost import with_encoder_saving
from prunekit.families import Family
from prunekit.records.metrics import Metrics
from prunekit.results.statistics import accuracies, intervals


class Question(NamedTuple):
    """What statistics read of an example."""

    image_id: str
    task: str


@dataclass
class Totals:
    """Sums over the rows of one run, in the order of the data.

    Attributes:
        tokens: rows by the tokens that each layer processed, and those of the prompt: profiles that many rows share.
        vision: rows by the tokens that entered each block of the vision encoder, where that was watched.
    """

    family: Family
    errors: int = 0
    asked: list[Question] = field(default_factory=list)
    correct: array[float] = field(default_factory=lambda: array("d"))
    dense: array[float] = field(default_factory=lambda: array("d"))
    tokens: Counter[tuple[int, tuple[int, ...]]] = field(default_factory=Counter)
    vision: Counter[tuple[int, ...]] = field(default_factory=Counter)
    tasks: dict[str, str] = field(default_factory=dict)

    def add(self, row: Prediction) -> None:
        """Count a row; one with an error is counted as that, and for nothing else."""
        if row.get("error"):
            self.errors += 1
            return
        self.asked.append(Question(row["image_id"], self.tasks.setdefault(row["task"], row["task"])))
        self.correct.append(float(row["correct"]))
        self.dense.append(float(row["dense_correct"]))
        self.tokens[row["prompt_tokens"], tuple(row["tokens_per_layer"])] += 1
        if row.get("vision_tokens"):
            self.vision[tuple(row["vision_tokens"])] += 1

    def accuracy(self) -> Metrics:
        """Accuracies of both sides and their difference, each with its interval, per task and over tasks."""
        pruned, dense = list(self.correct), list(self.dense)
        change = [p - d for p, d in zip(pruned, dense, strict=True)]
        counts = Counter(one.task for one in self.asked)
        return {
            "accuracy": accuracies(self.asked, pruned),
            "accuracy_ci": intervals(self.asked, pruned),
            "dense_accuracy": accuracies(self.asked, dense),
            "dense_accuracy_ci": intervals(self.asked, dense),
            "change": accuracies(self.asked, change),
            "change_ci": intervals(self.asked, change),
            "examples_per_task": {task: counts[task] for task in sorted(counts)},
        }

    def cost(self, vision_macs: float | None) -> Metrics:
        """Tokens and cost ratios. ``vision_macs`` are those of the encoder for one example, None if unknown."""
        profiles = list(self.tokens)
        tokens = torch.tensor([layers for _, layers in profiles]).T
        prompt, times = torch.tensor([length for length, _ in profiles]), torch.tensor([*self.tokens.values()])
        encoders = None if vision_macs is None else vision_macs * len(self.asked)
        cost = prefill_cost(self.family, tokens, prompt, encoders, times)
        saved = sum(n * encoder_saving(self.family, list(blocks)) for blocks, n in self.vision.items())
        return {
            "tokens_per_layer": ((tokens * times).sum(1).double() / times.sum()).tolist(),
            "flops_formula": "gated",
            "flops_ratio": cost.flops_ratio,
            "flops_ratio_with_vision": with_encoder_saving(cost, saved if self.vision else None, encoders),
            "kv_ratio": cost.kv_ratio,
        }
