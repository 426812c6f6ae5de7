"""What a training run leaves: the pruner, LoRA in PEFT's format, other weights as safetensors; and their return.

RUN/pruner.yaml, fusion.safetensors, reducer.safetensors   ``Pruner.load(RUN)``
RUN/adapter/                                               LoRA, as PEFT reads it
RUN/trained.safetensors                                    projector or all weights, by the model's own names
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from prunekit.adapters import ADAPTER, TRAINED
from prunekit.families import unwrap
from prunekit.train.model import TrainedModel


def save_artifacts(trained: TrainedModel, folder: Path) -> None:
    """Write what has been trained to a run's folder, ``pruner.yaml`` last."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = trained.settings.kind
    if kind == "lora":
        trained.model.save_pretrained(folder / ADAPTER)  # type: ignore[operator]
    elif kind in ("projector", "full"):
        own = unwrap(trained.model).named_parameters()  # each shared weight once
        save_file({name: p.detach().cpu().contiguous() for name, p in own if p.requires_grad}, folder / TRAINED)
    trained.pruner.save(folder)
