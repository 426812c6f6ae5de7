"""Schedules that are fitted on a few examples of a model, and the file in which what was measured is kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from prunekit.components.base import Schedule
from prunekit.errors import PrunekitError

FILE = "schedule.safetensors"
SHIPPED = Path(__file__).parent.parent / "assets" / "calibration"
"""Calibrations of the embedded models, ``SCHEDULE-MODEL.safetensors``."""

HOW = "task=calibrate makes the file for schedule.weights"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibration run measured.

    Attributes:
        curve: of the schedule, [depth - 1, ...]: for each layer before which tokens can go.
        mark: weights of the model it is of, by which that is known again (``Family.mark``).
        said: the schedule's name, and where the examples came from.
    """

    curve: torch.Tensor
    mark: torch.Tensor
    said: Mapping[str, str]

    def write(self, path: Path) -> None:
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"curve": self.curve.float().contiguous(), "mark": self.mark.contiguous()}, path, dict(self.said))

    def is_of(self, mark: torch.Tensor) -> bool:
        """Whether these are the same weights, in whatever precision."""
        near = 0.02 * float(self.mark.std())
        return mark.shape == self.mark.shape and torch.allclose(mark, self.mark, rtol=0.02, atol=near)


@functools.lru_cache(maxsize=16)
def _read(path: str, version: int) -> Calibration:
    """Read once for each ``version`` of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return Calibration(file.get_tensor("curve"), file.get_tensor("mark"), file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise PrunekitError(f"schedule.weights: '{path}' is not the file of a calibration run ({error})") from None


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        PrunekitError: if it is not there, or is no such file.
    """
    if not path.is_file():
        raise PrunekitError(f"schedule.weights: no file '{path}'")
    return _read(str(path), path.stat().st_mtime_ns)


@dataclass
class CalibratedSchedule(Schedule):
    """A schedule whose cuts follow from what a model shows on a few examples.

    Args:
        weights: the file of a calibration run (``task=calibrate``, ``prunekit.calibrate``), or its folder. By default
            the one that ships with prunekit, for the embedded models.
    """

    weights: str | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            path = Path(self.weights)
            self.weights = str(path / FILE if path.is_dir() else path)
            schedule = read_calibration(Path(self.weights)).said.get("schedule")
            if schedule != self.registered_name:
                name = self.registered_name
                raise PrunekitError(f"schedule.weights: '{self.weights}' is of schedule '{schedule}', not '{name}'")

    def measure(self, model: nn.Module, depth: int, batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The curve [depth - 1, ...] of this schedule from a dense ``model`` of ``depth`` decoder layers and a few
        ``batches`` of its inputs; called without gradients."""
        raise TypeError(f"{type(self).__name__} defines no measure(model, depth, batches)")

    def calibration(self, depth: int) -> Calibration:
        """What was measured, for a decoder of ``depth`` layers.

        Raises:
            PrunekitError: if nothing was, or on a decoder of another depth.
        """
        if self.weights is None:
            raise PrunekitError(f"schedule '{self.registered_name}' is not calibrated on this model; {HOW}")
        calibration = read_calibration(Path(self.weights))
        if (layers := len(calibration.curve) + 1) != depth:
            raise PrunekitError(f"schedule.weights: '{self.weights}' is for {layers} layers, the decoder has {depth}")
        return calibration

    def fitted(self, mark: torch.Tensor) -> Self:
        """This schedule with the calibration of the model of this ``mark``.

        Raises:
            PrunekitError: if there is none, or if it is of another model.
        """
        if self.weights is None:
            shipped = sorted(SHIPPED.glob(f"{self.registered_name}-*.safetensors"))
            if (path := next((p for p in shipped if read_calibration(p).is_of(mark)), None)) is not None:
                return dataclasses.replace(self, weights=str(path))
            raise PrunekitError(f"schedule '{self.registered_name}' is not calibrated on this model; {HOW}")
        calibration = read_calibration(Path(self.weights))
        if not calibration.is_of(mark):
            model = calibration.said.get("model", "unnamed")
            raise PrunekitError(f"schedule.weights: '{self.weights}' is of another model ({model}); {HOW}")
        return self
