"""A loaded model: what evaluation and training are handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class LoadedModel:
    """A model ready to evaluate.

    Attributes:
        fingerprint: changes when weights, config, dtype or prompt do; dense results are cached under it.
        prompt: what to ask with in place of the processor's chat template.
    """

    model: Any
    processor: Any
    name: str
    fingerprint: str
    prompt: str | None = None
