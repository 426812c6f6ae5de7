"""The options of a training run, checked: what the group ``train`` of the command line holds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from prunekit.errors import PrunekitError
from prunekit.options import (
    AboveZero,
    Count,
    CountOrNull,
    Flag,
    FromZero,
    Number,
    Options,
    Share,
    Takes,
    Text,
    choice,
)
from prunekit.train.gate import KINDS as GATES
from prunekit.train.penalties import PENALTIES

KINDS = ("fusion", "lora", "projector", "full", "compressor")
NO_GATE = "none"
JOURNAL = "training.jsonl"  # in the run folder: losses by step


class Settings(Options):
    """Options of ``task=train``; ``kind`` says what trains."""

    group: ClassVar[str] = "train"

    kind: choice(KINDS) = Field("fusion", description="what trains")  # type: ignore[valid-type]
    max_steps: Count = Field(200, description="updates")
    batch_size: Count = Field(16, description="of a process and micro-batch")
    accumulate: Count = Field(1, description="micro-batches of an update")
    learning_rate: FromZero = Field(1e-3, description="of the model's weights (AdamW; warm-up, then a cosine)")
    fusion_rate: FromZero = Field(1e-2, description="of the fusion's weights, which train along with fusion=learned")
    warmup: Share = Field(0.05, description="share of the steps in which rates rise")
    weight_decay: FromZero = Field(0.0, description="of AdamW")
    clip: FromZero = Field(1.0, description="of the gradient's norm")
    sparsity: FromZero = Field(0.0, description="λ: loss = LM + λ · penalty(scores)")
    penalty: choice(PENALTIES) = Field("entropy", description="what λ weighs, a function of the scores")  # type: ignore[valid-type]
    gate: choice((*GATES, NO_GATE)) = Field(  # type: ignore[valid-type]
        "straight_through",
        description="how scores are trained; none: hard removal, nothing of the loss reaches them",
    )
    temperature: AboveZero = Field(1.0, description="of the gate, in standard deviations of the scores")
    temperature_end: AboveZero | None = Field(None, description="anneal the temperature to this")
    gate_clip: AboveZero | None = Field(1.0, description="bound of |∂L/∂g| in nats of a sample's loss; null: none")
    keep_warmup: Share = Field(0.0, description="share of the steps in which the keep ratio falls from 1 to the target")
    keep_random: Annotated[list[Number], Takes("be a list")] = Field(
        default_factory=list, description="ratios of which one is drawn for every step, in place of the target"
    )
    shared: Flag = Field(False, description="the jobs of a row of a sweep train once (needs keep_random)")
    checkpointing: Flag = Field(False, description="gradient checkpointing of the decoder")
    split: Text = Field("train", description="of the data to learn from")
    limit: CountOrNull = Field(None, description="learn from the first so many examples")
    path: Text | None = Field(None, description="the file or data set to learn from; null: data.path")
    evaluate: Flag = Field(True, description="evaluate on data.split afterwards")
    save_steps: Count = Field(100, description="steps between checkpoints")
    log_steps: Count = Field(10, description="steps between lines of training.jsonl")
    lora_rank: Count = Field(8, description="rank of the adapters")
    lora_alpha: FromZero = Field(16.0, description="scale of the adapters")
    lora_dropout: FromZero = Field(0.0, description="dropout before the adapters")
    lora_targets: Annotated[list[Text] | None, Takes("be a list")] = Field(
        None, description="endings of layer names; null: the linear layers of the decoder's attention"
    )

    @model_validator(mode="after")
    def _check_shared(self) -> Settings:
        if self.shared and not self.keep_random:
            raise PrunekitError("train.shared=true trains once for several keep ratios: name them in train.keep_random")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be gone on with: all but how often it is logged, stored and evaluated."""
        rest = ("log_steps", "save_steps", "evaluate", "shared")
        return {name: value for name, value in self.model_dump().items() if name not in rest}

    def temperature_at(self, step: int, steps: int) -> float:
        """The gate's temperature: constant, or falling geometrically to ``temperature_end`` at the last step."""
        if self.temperature_end is None:
            return self.temperature
        share = step / max(1, steps - 1)
        return self.temperature * (self.temperature_end / self.temperature) ** share
