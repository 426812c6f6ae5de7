"""Two devices on one CPU: tensors that say they are on ``xla:0`` or ``xla:1``, live on the CPU, and refuse to meet.

A model spread over them by accelerate runs as it would over two GPUs: an operation that mixes devices, or reads a
device's tensor where one of the host is wanted, raises. (Nothing of XLA is used: it is a device type that torch knows
by name and does not try to start.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
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

    # torch's own of these ask for a guard of the device before they dispatch, and there is none.

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format):
        same = self.is_contiguous(memory_format=memory_format)
        return self if same else self.clone(memory_format=memory_format)

    def tolist(self):
        return self.inner.tolist()

    def item(self):
        return self.inner.item()

    def __int__(self):
        return int(self.inner)

    def __index__(self):
        return self.inner.__index__()

    def __float__(self):
        return float(self.inner)

    def __bool__(self):
        return bool(self.inner)

    def __invert__(self):
        return torch.bitwise_not(self)

    def __getitem__(self, index):
        return Placed(self.inner[self._unwrapped(index)], self.device)

    def __setitem__(self, index, value):
        self.inner[self._unwrapped(index)] = self._unwrapped(value)

    def _unwrapped(self, index):
        if isinstance(index, tuple):
            return tuple(self._unwrapped(part) for part in index)
        if isinstance(index, Placed):
            if index.device != self.device:
                raise RuntimeError(f"a tensor on {self.device} indexed by one on {index.device}")
            return index.inner
        return index


class Numbers(TorchFunctionMode):
    """``torch.tensor`` of a list of a device's numbers, which it cannot take apart by itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.tensor and isinstance(args[0], list):
            args = ([x.item() if isinstance(x, Placed) and x.ndim == 0 else x for x in args[0]], *args[1:])
        return func(*args, **(kwargs or {}))


class Machine(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to the logical devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __enter__(self):
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device=...) makes them here, then moves them
        self._numbers = Numbers()
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._numbers.__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._before)


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
