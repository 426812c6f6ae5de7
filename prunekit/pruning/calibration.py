"""A calibration run: a schedule fitted on a few examples of a model, kept with its pruner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.components.calibrated import FILE, CalibratedSchedule, Calibration
from prunekit.errors import PrunekitError
from prunekit.families import family_of
from prunekit.pruning.pruner import Pruner


def calibrate(
    pruner: Pruner,
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    folder: str | Path,
    said: Mapping[str, str] | None = None,
) -> Pruner:
    """The pruner with its schedule fitted on ``batches`` of model inputs, written to a folder as ``Pruner.load`` reads
    it.

    Args:
        said: notes for the file; "model" is named where the calibration is refused for another one.

    Raises:
        PrunekitError: for a schedule that is not fitted, and examples from which it cannot be.
    """
    schedule = pruner.schedule
    if not isinstance(schedule, CalibratedSchedule):
        raise PrunekitError(f"schedule '{schedule.registered_name}' has nothing to calibrate")
    family, name = family_of(model), schedule.registered_name
    if not any(bool(family.find_visual(batch["input_ids"], dict(batch)).any()) for batch in batches):
        raise PrunekitError(f"schedule '{name}': the examples to calibrate on show no visual token")
    with torch.no_grad():
        curve = schedule.measure(model, family.depth, batches)
    if len(curve) != family.depth - 1 or not torch.isfinite(curve).all():
        shape = list(curve.shape)
        raise PrunekitError(f"schedule '{name}' measured {shape} numbers of {family.depth} layers, or not finite ones")
    path = Path(folder) / FILE
    Calibration(curve.cpu(), family.mark, {**(said or {}), "schedule": name}).write(path)
    fitted = pruner.replace(schedule=dataclasses.replace(schedule, weights=str(path)))
    fitted.save(folder)
    return fitted
