"""The attention tap: one layer's attention function, called by way of an observer of its queries, keys and mask."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunekit.engine.layout import take
from prunekit.engine.masks import take_columns
from prunekit.engine.rows import AttentionInputs

ATTENTION_NAME = "prunekit"
"""The private name under which the tap stands in transformers' attention interface."""

_taps: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = weakref.WeakKeyDictionary()


def _tapped_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Entry of the attention interface: only modules that carry our name come here, each finds its own tap."""
    return _taps[module](module, *args, **kwargs)


class _Name(str):
    """Our name, which the model's own code takes for that of its implementation.

    Sparse attention asks ``config._attn_implementation in ("eager", "sdpa")`` and would switch itself off under any
    other name; as a key of the attention interface it is ours, by its hash.
    """

    shown: str

    def __new__(cls, shown: str) -> _Name:
        name = super().__new__(cls, ATTENTION_NAME)
        name.shown = shown
        return name

    def __eq__(self, other: object) -> bool:
        return other in (self.shown, ATTENTION_NAME)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str) and part in self.shown

    __hash__ = str.__hash__


class Taps:
    """The taps of one session."""

    def __init__(self) -> None:
        self._configs: list[tuple[nn.Module, Any]] = []

    def add(self, module: nn.Module, tap: Callable[..., Any], implementation: str) -> None:
        """Route a module's attention through ``tap``: the module gets a config of its own with our name in it, so
        the model's config, and whoever shares it, keep theirs."""
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _tapped_attention)
        own = copy.copy(module.config)
        own._attn_implementation_internal = _Name(implementation)  # type: ignore[union-attr]
        self._configs.append((module, module.config))
        _taps[module] = tap
        module.config = own  # type: ignore[assignment]

    def remove(self) -> None:
        """Give every module its config back."""
        for module, config in self._configs:
            module.config = config
            _taps.pop(module, None)
        self._configs = []


def attention_inputs(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
    places: torch.Tensor | None,
) -> AttentionInputs:
    """What a layer gave its attention function; ``places`` [B, M] are its own tokens among keys that it borrows."""
    bias = options.get("position_bias")
    if places is not None:
        key = take(key.transpose(1, 2), places).transpose(1, 2)
        mask = None if mask is None else take_columns(mask, places)
    causal = options.get("is_causal")
    sinks = options.get("s_aux")
    return AttentionInputs(
        queries=query,
        keys=key,
        mask=mask,
        scaling=options.get("scaling") or query.shape[-1] ** -0.5,
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        softcap=options.get("softcap"),
        sinks=options.get("sinks") if sinks is None else sinks,
        bias=bias,
    )
