"""A loaded model: what evaluation and training are handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

TRAINED_KINDS = ("lora", "projector", "full")
"""Kinds of training after which the model is another, and is named so: "mini+lora"."""


def base_name(name: str) -> str:
    """The name of the model that a trained one started from."""
    base, plus, kind = name.rpartition("+")
    return base if plus and kind in TRAINED_KINDS else name


@dataclass
class LoadedModel:
    """A model ready to evaluate.

    Attributes:
        digest: changes when weights, config, dtype or prompt do; dense results are cached under it.
        prompt: what to ask with in place of the processor's chat template.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str
    digest: str
    prompt: str | None = None
