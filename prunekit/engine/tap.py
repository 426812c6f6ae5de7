"""The attention tap: one layer's attention function, called by way of an observer of its queries, keys and mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import nn

from prunekit.engine.mounted import own
from prunekit.engine.precision import in_float32
from prunekit.families.implementation import implementation_of, untapped
from prunekit.tensors.attention import AttentionInputs
from prunekit.tensors.indexing import gather_tokens
from prunekit.tensors.masks import take_columns

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ATTENTION_NAME = "prunekit"
"""The private name under which the tap stands in transformers' attention interface."""


class AttentionOptions(TypedDict, total=False):
    """The keywords of an attention function that prunekit reads; others pass through."""

    scaling: float | None
    is_causal: bool | None
    softcap: float | None
    s_aux: torch.Tensor | None
    sinks: torch.Tensor | None
    position_bias: torch.Tensor | None


Mask = torch.Tensor | None
Observer = Callable[
    [nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, Mask, AttentionOptions], tuple[torch.Tensor, Mask]
]
"""(module, query, key, value, mask, options) -> the query and the mask that the attention function gets."""


def _tapped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask = None,
    **options: Unpack[AttentionOptions],
) -> Any:
    """Entry of the attention interface: only modules that carry our name come here, each finds its own tap."""
    tap: TappedConfig = module.config  # type: ignore[assignment]
    query, attention_mask = tap.tap_observer(module, query, key, value, attention_mask, options)
    return tap.tap_function()(module, query, key, value, attention_mask, **options)


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


class TappedConfig:
    """A config as one tapped module sees it: the model's own, live, but for the name of the attention implementation.

    Everything is read from and written to the model's config, so that ``set_attn_implementation`` is followed at the
    next forward pass. A copy of it, pickled or deep, is the model's config (or its copy).
    """

    def __init__(
        self, config: PretrainedConfig, observe: Observer, attention: Callable[[], Callable[..., Any]]
    ) -> None:
        vars(self).update(tap_config=config, tap_observer=observe, tap_function=attention, tap_name=None)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.tap_config)

    def __getattr__(self, name: str) -> Any:
        if name == "tap_config":  # before there is one
            raise AttributeError(name)
        return getattr(self.tap_config, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.tap_config, name, value)

    @property
    def _attn_implementation(self) -> str:
        shown = implementation_of(self)
        if self.tap_name is None or self.tap_name.shown != shown:
            vars(self)["tap_name"] = _Name(shown)
        return self.tap_name

    _attn_implementation_internal = _attn_implementation

    def __copy__(self) -> Any:
        return copy.copy(self.tap_config)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.tap_config, memo)

    def __reduce_ex__(self, protocol: object) -> Any:
        return _itself, (self.tap_config,)


def _itself(config: PretrainedConfig) -> Any:
    return config


class Taps:
    """The taps of one session."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []

    def add(self, module: nn.Module, observe: Observer, attention: Callable[[], Callable[..., Any]]) -> None:
        """Let ``observe`` see what a module hands to its attention function, ``attention()`` of the moment.

        The module gets a config of its own with our name in it, so the model's config, and whoever shares it, keep
        theirs.
        """
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _tapped_attention)
        module.config = TappedConfig(module.config, own(observe), attention)  # type: ignore[assignment]
        self._modules.append(module)

    def remove(self) -> None:
        """Give every module its config back."""
        for module in self._modules:
            module.config = untapped(module.config)
        self._modules = []


def attention_inputs(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Mask,
    options: AttentionOptions,
    places: torch.Tensor | None,
    value: torch.Tensor | None = None,
    unrotated: tuple[torch.Tensor, torch.Tensor] | None = None,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> AttentionInputs:
    """What a layer gave its attention function; ``places`` [B, M] are its own tokens among keys that it borrows."""
    if places is not None:
        key = gather_tokens(key.transpose(1, 2), places).transpose(1, 2)
        value = None if value is None else gather_tokens(value.transpose(1, 2), places).transpose(1, 2)
        mask = None if mask is None else take_columns(mask, places)
    causal = options.get("is_causal")
    sinks = options.get("s_aux")
    query, key = in_float32(query, key)
    return AttentionInputs(
        queries=query,
        keys=key,
        mask=mask,
        scaling=options.get("scaling") or query.shape[-1] ** -0.5,
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        softcap=options.get("softcap"),
        sinks=options.get("sinks") if sinks is None else sinks,
        bias=options.get("position_bias"),
        values=None if value is None else in_float32(value)[0],
        unrotated=unrotated,
        angles=angles,
    )
