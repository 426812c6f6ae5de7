"""Mixed precision: what prunekit computes itself is never autocast, what it lets the model compute is.

A hook runs inside the caller's forward pass, so ``torch.autocast`` would round the evidence of a choice, and fills of
masks would overflow. Every hook and every tap goes through ``own_precision``; where one of them runs modules of the
model (a look ahead, a projection), ``model_precision`` puts the caller's autocast back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


class OuterPrecision(threading.local):
    """The autocast of the calling thread outside of prunekit's arithmetic: (device type, dtype) where it is on."""

    outer: tuple[tuple[str, torch.dtype], ...] = ()


_thread = OuterPrecision()


@functools.cache
def _kinds() -> tuple[str, ...]:
    """Device types whose autocast may be on: the CPU's, and that of the accelerator that this torch is built for."""
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def autocasts() -> bool:
    """Whether autocast is on for any kind of device."""
    return any(torch.is_autocast_enabled(kind) for kind in _kinds())


def surrounding_dtype(kind: str) -> torch.dtype | None:
    """What the caller's autocast rounds to on devices of a type, None without autocast; asked inside
    ``own_precision``."""
    return next((dtype for name, dtype in _thread.outer if name == kind), None)


@contextmanager
def own_precision() -> Iterator[None]:
    """Within, nothing is autocast."""
    active = tuple((kind, torch.get_autocast_dtype(kind)) for kind in _kinds() if torch.is_autocast_enabled(kind))
    if not active:
        yield
        return
    before, _thread.outer = _thread.outer, active
    try:
        with ExitStack() as stack:
            for kind, _ in active:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _thread.outer = before


@contextmanager
def model_precision() -> Iterator[None]:
    """Within ``own_precision``: the caller's autocast again, for modules of the model."""
    with ExitStack() as stack:
        for kind, dtype in _thread.outer:
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        yield


def in_float32(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors that the model computed, as evidence: in float32 under the caller's autocast, which rounds some of them,
    so that no two meet in different types; elsewhere as they are."""
    return tuple(x if surrounding_dtype(x.device.type) is None else x.float() for x in tensors)
