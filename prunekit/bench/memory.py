"""Memory: what a forward pass allocates, on any device, and what its cache holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from transformers import Cache


class AllocationMeter(TorchDispatchMode):
    """Inside the block, every tensor that an operation makes is seen; what a fused kernel uses inside is not.

    Attributes:
        peak: most bytes of new tensors that were alive at a time.
        largest: number of entries of the largest new tensor.
        calls: how often each operation ran, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._live = 0
        self.calls: dict[str, int] = {}
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        found = func(*args, **(kwargs or {}))
        name = str(func)
        self.calls[name] = self.calls.get(name, 0) + 1
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self._note(tensor)
        return found

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._live += size
        self.peak, self.largest = max(self.peak, self._live), max(self.largest, size // tensor.element_size())
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self._live -= size


def kv_bytes(cache: Cache) -> int:
    """Bytes of the keys and values that a cache holds."""
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
