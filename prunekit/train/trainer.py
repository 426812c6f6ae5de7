"""The training loop of pruned fine-tuning: its loss, and checkpoints of what trains alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from prunekit.errors import PrunekitError
from prunekit.train.loop import Loop, loop_arguments
from prunekit.train.model import TrainedModel
from prunekit.train.settings import JOURNAL, Settings

if TYPE_CHECKING:
    from transformers import TrainerState

WEIGHTS = "trained.safetensors"


class PruneTrainer(Loop):
    """L = L_LM + λ · penalty, both logged apart.

    L_LM is the mean over the answers' tokens of the whole batch, however it is cut into micro-batches and processes;
    the penalty is a mean over its samples. So ``compute_loss`` returns a loss scaled for both already.
    """

    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None

    def __init__(self, model: TrainedModel, settings: Settings, args: TrainingArguments, **kwargs: object) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.settings, self.trained_model = settings, model
        self._sums: dict[str, torch.Tensor | float] = {"lm_loss": 0.0, "sparsity": 0.0}

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, object],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        ids = inputs.pop("ids")
        assert isinstance(ids, list)
        self.trained_model.at(self.state.global_step, self.state.max_steps)
        try:
            parts = model(**inputs)
        except PrunekitError as error:
            raise PrunekitError(f"{self._where(ids)}: {error}") from None
        items = parts["tokens"] if num_items_in_batch is None else num_items_in_batch
        lm, sparsity = parts["lm"] / items, parts["sparsity"] / self.current_gradient_accumulation_steps
        if (gate := self.trained_model.gate) is not None:
            gate.scale = self.accelerator.num_processes / float(items)
        loss = lm * self.accelerator.num_processes
        if self.settings.sparsity:
            loss = loss + self.settings.sparsity * sparsity
        self.checked(loss, self._where(ids))
        if not loss.requires_grad:
            raise PrunekitError(f"train={self.settings.kind}: the loss does not depend on what trains")
        self._sums["lm_loss"] += lm.detach()
        self._sums["sparsity"] += sparsity.detach() / self.accelerator.num_processes
        return loss

    def _where(self, ids: list[str]) -> str:
        return f"step {self.state.global_step + 1}, batch [{', '.join(ids)}]"

    def last_good(self) -> str:
        found = last_checkpoint(Path(self.args.output_dir))
        return "; no checkpoint yet" if found is None else f"; the last good checkpoint is {found}"

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; fusion weights learn at a rate of their own and do not decay, as vectors do not."""
        if self.optimizer is None:
            trained, rate = self.trained_model.trained(), self.settings.learning_rate
            fusion = [p for name, p in trained.items() if name.startswith("own.")]
            rest = [p for name, p in trained.items() if not name.startswith("own.")]
            decay = self.settings.weight_decay
            groups = [
                {"params": fusion, "lr": self.settings.fusion_rate, "weight_decay": 0.0},
                {"params": [p for p in rest if p.ndim > 1], "lr": rate, "weight_decay": decay},
                {"params": [p for p in rest if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            steps = self.state.global_step - self._logged_at
            for name, value in self._sums.items():
                total = self.accelerator.reduce(torch.as_tensor(value, device=self.args.device), "sum")
                logs[name] = float(total) / max(1, steps)
            if (ratio := self.trained_model.keep_ratio) is not None:
                logs["keep_ratio"] = ratio
            self._sums, self._logged_at = {"lm_loss": 0.0, "sparsity": 0.0}, self.state.global_step
        super().log(logs, start_time)

    _logged_at = 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """What trains, and nothing that is frozen; never weights that are not finite."""
        trained = {name: p.detach().cpu().contiguous() for name, p in self.trained_model.trained().items()}
        broken = [name for name, value in trained.items() if not bool(value.isfinite().all())]
        if broken:
            step = self.state.global_step
            raise PrunekitError(f"step {step}: weights are not finite ({broken[0]}){self.last_good()}")
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        own, found = self.trained_model.trained(), load_file(Path(resume_from_checkpoint) / WEIGHTS)
        if own.keys() != found.keys():
            raise PrunekitError(f"resume: '{resume_from_checkpoint}' holds other weights than those that train here")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(found[name])

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: object) -> Any:
        if resume_from_checkpoint is not None:
            state = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text())
            self._logged_at = state["global_step"]
        return super().train(resume_from_checkpoint, **kwargs)


class Journal(TrainerCallback):
    """One line a report, printed, and kept in ``training.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.start = time.monotonic() - (json.loads(lines[-1])["seconds"] if lines else 0.0)

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        row = {"step": state.global_step, **logs, "seconds": round(time.monotonic() - self.start, 1)}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ("step", "loss", "lm_loss", "sparsity", "keep_ratio", "learning_rate")
        print(" ".join(f"{name}={row[name]:.4g}" for name in shown if name in row), flush=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def arguments_for(settings: Settings, folder: Path, device: torch.device, seed: int) -> TrainingArguments:
    """The Trainer's own options."""
    return loop_arguments(
        str(folder),
        settings.max_steps,
        seed,
        device,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * settings.max_steps),
        max_grad_norm=settings.clip,
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=settings.log_steps,
        dataloader_drop_last=True,
        ddp_find_unused_parameters=settings.kind in ("full", "projector"),
        label_names=["labels"],
        bf16=device.type == "cuda",
    )
