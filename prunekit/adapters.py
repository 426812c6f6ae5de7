"""What was trained of a model, put into it again: LoRA in PEFT's format, other weights as safetensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER, TRAINED = "adapter", "trained.safetensors"
"""Where a training run leaves LoRA weights, and all others."""


def attach(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The model with the adapter or weights of a run's folder (or of a folder that PEFT wrote) in it; LoRA is merged,
    so that nothing of it is left beside the weights.

    Raises:
        PrunekitError: where there is nothing to attach, or it is of another model.
    """
    folder = Path(folder)
    if (adapter := _adapter(folder)) is not None:
        return _merged(model, adapter)
    if (file := folder / TRAINED).is_file():
        return _loaded(model, file)
    if (folder / "pruner.yaml").is_file():
        return model  # a run that trained the pruner alone
    raise PrunekitError(f"model.adapter: neither an adapter nor trained weights in '{folder}'")


def _adapter(folder: Path) -> Path | None:
    places = (place for place in (folder, folder / ADAPTER) if (place / "adapter_config.json").is_file())
    return next(places, None)


def _merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError:
        raise PrunekitError("model.adapter needs peft: pip install 'prunekit[train]'") from None
    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrunekitError(f"model.adapter: '{folder}' does not fit this model: {reason}") from None


def _loaded(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    own = dict(model.named_parameters())
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise PrunekitError(f"model.adapter: '{file}' is not a safetensors file ({error})") from None
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise PrunekitError(f"model.adapter: '{file}' does not fit this model: {name} {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return model


def weights_digest(folder: str | Path) -> str:
    """A hash of what ``attach`` reads."""
    folder, content = Path(folder), hashlib.sha256()
    for place in (folder, folder / ADAPTER):
        for path in sorted(place.glob("*.safetensors")) if place.is_dir() else ():
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:16]
