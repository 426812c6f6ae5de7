"""A stage of the embedded model's training in the loop that all training runs in (``prunekit.train.loop``).

A stage draws its own batch for each step from the step's number, so the loop's data are those numbers. Its rates follow
``set_rate``; its checkpoint is one file, from which any later step goes on as if nothing had been.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from prunekit.train.loop import Loop, loop_arguments
from tools.embedded.progress import set_rate


@dataclass
class Stage:
    """What the loop must know of a stage.

    Attributes:
        modules: all that it trains.
        optimizers: of their parameters, which step together.
        loss: of a step, counted from 0.
        ended: called after a step's update with how many steps are done, to log and to store.
        steps: its whole length, on which the rates depend.
        start: steps that are done already.
        warmup: steps of rising rates.
        clipped: parameters whose gradients together are held to norm 1.
        norm: of those gradients in the latest step, before.
    """

    name: str
    modules: dict[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    loss: Callable[[int], torch.Tensor]
    ended: Callable[[int], None]
    steps: int
    start: int = 0
    warmup: int = 50
    clipped: Iterable[nn.Parameter] = ()
    norm: float = 0.0

    def run(self, folder: Path, until: int | None = None) -> None:
        """Train from ``start`` to the last step, or to step ``until`` if that comes sooner."""
        last = min(self.steps, until or self.steps)
        if self.start < last:
            StageLoop(self, folder, last).train()


class Together(torch.optim.Optimizer):
    """Several optimisers as one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers, self.defaults, self.state = optimizers, {}, defaultdict(dict)
        self._gather()

    def _gather(self) -> None:
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._gather()


class Numbers(Dataset[dict[str, int]]):
    """As many numbers as there are steps; what they are does not matter."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index}


class StageLoop(Loop):
    """The loop of one stage, from its start to step ``last``."""

    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None

    def __init__(self, stage: Stage, folder: Path, last: int) -> None:
        count = last - stage.start
        rest: dict[str, Any] = dict(save_strategy="no", logging_strategy="no", lr_scheduler_type="constant")
        args = loop_arguments(
            str(folder), count, 0, torch.device("cpu"), per_device_train_batch_size=1, max_grad_norm=1.0, **rest
        )
        self.stage, self.file = stage, folder / f"{stage.name}.pt"
        super().__init__(nn.ModuleDict(stage.modules), args, train_dataset=Numbers(count), callbacks=[Pace(stage)])

    def last_good(self) -> str:
        stored = f"the last good checkpoint is {self.file}" if self.file.exists() else "no checkpoint yet"
        return f" (the step's number draws its batch again); {stored}"

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = Together(self.stage.optimizers)
        return self.optimizer

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        step = self.stage.start + self.state.global_step
        return self.checked(self.stage.loss(step), f"stage {self.stage.name}, step {step + 1}")

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | None:
        parameters = list(self.stage.clipped)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0) if parameters else None
        self.stage.norm = 0.0 if norm is None else norm.item()
        return norm


class Pace(TrainerCallback):
    """Sets the rates before a step, and tells the stage when it has ended."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for optimizer in self.stage.optimizers:
            set_rate(optimizer, self.stage.start + state.global_step, self.stage.steps, self.stage.warmup)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stage.ended(self.stage.start + state.global_step)
