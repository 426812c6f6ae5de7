"""What the training stages share: optimiser, learning rate, checkpoints, a log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.files import replacing


class Log:
    """Prints one line a report and keeps it in ``log.jsonl`` of the run's folder."""

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.stage, self.start = folder / "log.jsonl", stage, time.time()

    def __call__(self, step: int, **values: Any) -> None:
        row = {"stage": self.stage, "step": step, "seconds": round(time.time() - self.start), **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}:{_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    return str(value)


def optimiser(modules: dict[nn.Module, float], rate: float, decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW over modules, each with its share of the rate; matrices decay, vectors do not."""
    groups = []
    for module, share in modules.items():
        parameters = list(module.parameters())
        matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        groups.append({"params": matrices, "weight_decay": decay, "rate": rate * share})
        groups.append({"params": vectors, "weight_decay": 0.0, "rate": rate * share})
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def optimisers(
    modules: dict[nn.Module, float], rate: float, decay: float = 0.05, rest_share: float = 1.0
) -> list[torch.optim.Optimizer]:
    """Muon for the weights of linear layers between hidden states, AdamW for the rest (embeddings, heads, vectors).

    Each module learns at its share of ``rate``, what AdamW trains at ``rest_share`` of that.
    """
    hidden, rest = [], []
    for module, share in modules.items():
        named = list(module.named_parameters())
        inner = {name for name, p in named if p.dim() == 2 and any(part in name for part in ("proj", "fc", "linear_"))}
        hidden.append({"params": [p for name, p in named if name in inner], "rate": rate * share})
        slow = {"rate": rate * share * rest_share}
        rest.append({"params": [p for name, p in named if name not in inner and p.dim() > 1], **slow})
        rest.append({"params": [p for _, p in named if p.dim() <= 1], **slow, "weight_decay": 0.0})
    hidden, rest = ([group for group in groups if group["params"]] for groups in (hidden, rest))
    return [
        torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True),
    ]


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int = 50) -> None:
    """Linear warm-up of each group to its rate, then a cosine to a fiftieth of it."""
    progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
    factor = min(1.0, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor


def save_checkpoint(path: Path, **state: Any) -> None:
    """Writes a checkpoint in one move, so that an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """A stage's checkpoint, or None if there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None
