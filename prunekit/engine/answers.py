"""What components answer: asked for with their name and layer at hand, so that whoever errs is named.

An answer of a wrong shape, type or device is refused at once. What can be seen in the numbers alone (NaN, a selection
of another size than was asked for) is a ``Doubt``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from prunekit.components.base import Component, Reduced
from prunekit.errors import PrunekitError
from prunekit.views.layer import View

T = TypeVar("T")


def place_of(view: View) -> str:
    """Where a view was taken, in words."""
    return f"block {view.layer} of the encoder" if view.site == "vision" else f"layer {view.layer}"


def ask(component: Component, function: str, view: View, call: Callable[[], T]) -> T:
    """What a component answers.

    Raises:
        PrunekitError: names the component, its function and the layer if it raises anything else than that itself.
    """
    try:
        return call()
    except (PrunekitError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split()) or "no message"
        raise PrunekitError(
            f"{type(component).__name__}.{function} failed at {place_of(view)}: {type(error).__name__}: {text} "
            f"({Path(last.filename).name}, line {last.lineno})"
        ) from error


def check_answer(
    component: Component, function: str, view: View, value: object, shape: torch.Size, kind: str = "float"
) -> torch.Tensor:
    """A tensor that a component answered.

    Args:
        value: the answer.
        shape: its shape.
        kind: "float" takes any real numbers, "bool" and "long" their own type alone.

    Raises:
        PrunekitError: for another shape, another type, or another type of device.
    """
    who = f"{type(component).__name__}.{function} returned"
    wanted = " × ".join(map(str, shape))
    if not isinstance(value, torch.Tensor):
        raise PrunekitError(f"{who} {type(value).__name__} at {place_of(view)}, not a tensor [{wanted}]")
    if value.shape != shape:
        raise PrunekitError(f"{who} {tuple(value.shape)} at {place_of(view)}, not {tuple(shape)}")
    types = {"bool": (torch.bool,), "long": (torch.int64, torch.int32)}.get(kind)
    if value.is_complex() or (types is not None and value.dtype not in types):
        raise PrunekitError(f"{who} {value.dtype} at {place_of(view)}, not {'real numbers' if types is None else kind}")
    device = view.hidden_states.device
    if value.device.type != device.type:
        raise PrunekitError(f"{who} a tensor on '{value.device}' at {place_of(view)}, not on '{device}'")
    return value.to(device)  # a model's encoder and layers may lie on several devices of one type


def check_reduced(component: Component, view: View, value: object, tokens: torch.Tensor) -> Reduced:
    """What a reducer answered for ``tokens`` [B, N, D], with every field that it gave checked.

    Raises:
        PrunekitError: as ``check_answer``, and for anything but a ``Reduced``.
    """
    if not isinstance(value, Reduced):
        kinds_of = type(component).__name__, type(value).__name__
        raise PrunekitError(f"{kinds_of[0]}.reduce returned {kinds_of[1]} at {place_of(view)}, not a prunekit.Reduced")
    marks = tokens.shape[:2]
    kinds = {"sizes": "float", "added": "bool", "sources": "long", "order": "long"}
    fields = {
        name: check_answer(component, f"reduce(…).{name}", view, field, marks, kind)
        for name, kind in kinds.items()
        if (field := getattr(value, name)) is not None
    }
    return Reduced(check_answer(component, "reduce(…).tokens", view, value.tokens, tokens.shape), **fields)
