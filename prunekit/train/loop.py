"""The loop that all training here runs in: transformers' Trainer, checking every loss and printing nothing of its own.

``PruneTrainer`` fine-tunes a model under its pruner; ``tools/embedded/stage.py`` runs the stages of the embedded model.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from prunekit.errors import PrunekitError


class Loop(Trainer):
    """A Trainer whose subclasses say what a step's loss is."""

    def __init__(self, model: nn.Module, args: TrainingArguments, **kwargs: object) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # one process a device: hooks do not live in replicas
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(PrinterCallback)

    def checked(self, loss: torch.Tensor, where: str) -> torch.Tensor:
        """The loss, if it is finite; else the run stops with ``where`` it was."""
        if not bool(loss.isfinite()):
            raise PrunekitError(f"{where}: the loss is {loss.item()}{self.last_good()}")
        return loss

    def last_good(self) -> str:
        """What an error says of the checkpoints that stand."""
        return ""


def loop_arguments(folder: str, steps: int, seed: int, device: torch.device, **more: object) -> TrainingArguments:
    """What all loops have in common: nothing reported elsewhere, columns as they come, one device."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        **more,
    )
