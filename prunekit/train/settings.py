"""The options of a training run, checked: what the group ``train`` of the command line holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from prunekit.errors import PrunekitError, UnknownNameError, check_choice
from prunekit.train.gate import KINDS as GATES
from prunekit.train.penalties import PENALTIES

KINDS = ("fusion", "lora", "projector", "full", "compressor")
NO_GATE = "none"
JOURNAL = "training.jsonl"  # in the run folder: losses by step


@dataclass
class Settings:
    """See ``conf/train/_base.yaml``, where every option has its comment."""

    kind: str = "fusion"
    max_steps: int = 200
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    fusion_rate: float = 1e-2
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    sparsity: float = 0.0
    penalty: str = "entropy"
    gate: str = "straight_through"
    temperature: float = 1.0
    temperature_end: float | None = None
    gate_clip: float | None = 1.0
    keep_warmup: float = 0.0
    keep_random: list[float] = field(default_factory=list)
    shared: bool = False
    checkpointing: bool = False
    split: str = "train"
    limit: int | None = None
    path: str | None = None
    evaluate: bool = True
    save_steps: int = 100
    log_steps: int = 10
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: list[str] | None = None

    def __post_init__(self) -> None:
        check_choice("train.kind", self.kind, KINDS)
        check_choice("train.penalty", self.penalty, PENALTIES)
        check_choice("train.gate", self.gate, (*GATES, NO_GATE))
        for name in ("max_steps", "batch_size", "accumulate", "save_steps", "log_steps", "lora_rank"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise PrunekitError(f"train.{name} must be a whole number from 1 on, not {value!r}")
        if isinstance(self.limit, bool) or not (self.limit is None or (isinstance(self.limit, int) and self.limit > 0)):
            raise PrunekitError(f"train.limit must be a whole number from 1 on or null, not {self.limit!r}")
        for name in ("evaluate", "checkpointing", "shared"):
            if not isinstance(value := getattr(self, name), bool):
                raise PrunekitError(f"train.{name} must be true or false, not {value!r}")
        numbers = ("sparsity", "weight_decay", "clip", "lora_dropout", "lora_alpha", "learning_rate", "fusion_rate")
        for name in (*numbers, "warmup", "keep_warmup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise PrunekitError(f"train.{name} must be a number from 0 on, not {value!r}")
        for name in ("temperature", "temperature_end", "gate_clip"):
            value = getattr(self, name)
            if value is None and name != "temperature":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise PrunekitError(f"train.{name} must be a number above 0, not {value!r}")
        for name in ("warmup", "keep_warmup"):
            if not (value := getattr(self, name)) <= 1:
                raise PrunekitError(f"train.{name} must lie in [0, 1], not {value!r}")
        for name in ("keep_random", "lora_targets"):
            if not isinstance(value := getattr(self, name), list | None):
                raise PrunekitError(f"train.{name} must be a list, not {value!r}")
        if self.shared and not self.keep_random:
            raise PrunekitError("train.shared=true trains once for several keep ratios: name them in train.keep_random")

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Settings:
        """From the configuration's ``train``."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownNameError("option of train:", name, known)
        return cls(**options)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be gone on with: all but how often it is logged, stored and evaluated."""
        rest = ("log_steps", "save_steps", "evaluate", "shared")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in rest}

    def temperature_at(self, step: int, steps: int) -> float:
        """The gate's temperature: constant, or falling geometrically to ``temperature_end`` at the last step."""
        if self.temperature_end is None:
            return self.temperature
        share = step / max(1, steps - 1)
        return self.temperature * (self.temperature_end / self.temperature) ** share
