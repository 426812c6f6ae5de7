"""A loaded model: what evaluation and training are handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class LoadedModel:
    """A model ready to evaluate.

    Attributes:
        digest: changes when weights, config, dtype or prompt do; dense results are cached under it.
        prompt: what to ask with in place of the processor's chat template.
    """

    model: Any
    processor: Any
    name: str
    digest: str
    prompt: str | None = None
