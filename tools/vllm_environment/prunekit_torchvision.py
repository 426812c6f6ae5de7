"""Lets torchvision's CUDA wheel, the only one on PyPI, be imported beside a torch for CPUs.

Where the library that defines its operators cannot be loaded, the two that its Python code looks up are declared.
Nothing here calls them."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class Declare(importlib.abc.MetaPathFinder):
    """Finds nothing; when torchvision is about to be imported it declares the operators once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            declare(Path(spec.origin).with_name("_C.so"))
        return spec


def declare(library: Path) -> None:
    """Declare ``nms`` and ``qnms`` unless ``library`` defines them."""
    import torch

    try:
        torch.ops.load_library(library)
    except OSError:
        operators = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.torchvision_operators = operators  # type: ignore[attr-defined]  # they go when this object does


sys.meta_path.insert(0, Declare())
