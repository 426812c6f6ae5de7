"""Two devices on one CPU: tensors that say they are on ``xla:0`` or ``xla:1``, live on the CPU, and refuse to meet.

A model spread over them by accelerate runs as it would over two GPUs: an operation that mixes devices, or reads a
device's tensor where one of the host is wanted, raises. (Nothing of XLA is used: it is a device type that torch knows
by name and does not try to start.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KIND = "xla"
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
"""A device's tensor may be indexed by indices of the host, as on a GPU."""


class Placed(torch.Tensor):
    """A tensor of a logical device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=device, requires_grad=False
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to the logical devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the CPU, its result on the device of what went in."""
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    target = kwargs.get("device")
    moves = func is torch.ops.aten._to_copy.default or func is torch.ops.aten.copy_.default
    device = _meeting(func, tensors, moves)
    if target is not None:
        device = torch.device(target)
        if device.type == KIND and device.index is None:
            device = torch.device(KIND, 0)
    inner = [x.inner if isinstance(x, Placed) else x for x in flat]
    args_, kwargs_ = tree_unflatten(inner, spec)
    if target is not None:
        kwargs_["device"] = torch.device("cpu")
    kwargs_.pop("pin_memory", None)
    found = func(*args_, **kwargs_)
    if func._schema.is_mutable and tensors and found is not None:
        written = args_[0]
        if found is written:
            return args[0]
    if device is None or device.type != KIND:
        return found
    return tree_map(lambda x: Placed(x, device) if isinstance(x, torch.Tensor) else x, found)


def _meeting(func: Any, tensors: list[torch.Tensor], moves: bool) -> torch.device | None:
    """The one device of the operands; raises if there are two. Single numbers of the host may be anywhere."""
    if moves:
        return tensors[0].device
    if func in INDEXING:
        tensors = [tensors[0], *(x for x in tensors[1:] if x.device.type == KIND)]
    met = {x.device for x in tensors if x.device.type == KIND or x.ndim}
    if len(met) > 1:
        raise RuntimeError(f"{func}: operands on {', '.join(sorted(map(str, met)))}")
    return met.pop() if met else None
