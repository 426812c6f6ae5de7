"""What a decoder layer is given beside its hidden states, made to match a shortened sequence."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.engine.prefill import Prefill, gather_argument
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.families.base import is_mask_name
from prunekit.tensors.indexing import gather_tokens
from prunekit.tensors.masks import padding_mask, prefill_mask, shared_mask, take_columns
from prunekit.tensors.sequences import CompactSequence

KEY_PLACES = ("prev_topk_indices",)
"""Places of keys that an earlier layer chose for each query, [B, S, K]."""


def compact(target: Target, index: int, name: str, value: object, state: Prefill, hidden: torch.Tensor) -> Any:
    """A layer's argument as the current sequence needs it; made once a sequence and shared by its layers."""
    if not is_mask_name(name) and not isinstance(value, torch.Tensor | tuple | list | dict):
        return value
    keys, family = key_sequence(target, index, state), target.family
    flags = family.takes_padding_mask(index), family.mixes_and_attends(index), -1 if keys is None else keys.number
    key = (name, id(value), state.sequence.number, flags)
    if key not in state.arguments:
        state.arguments[key] = (value, _make(target, index, name, value, state, hidden))
    return state.arguments[key][1]


def key_sequence(target: Target, index: int, state: Prefill) -> CompactSequence | None:
    """The sequence of the keys that a layer borrows from an earlier one, None if they are those of its own sequence."""
    source = state.sequences[target.family.key_layers[index]]
    return source if source.number != state.sequence.number else None


def foreign_keys(target: Target, index: int, state: Prefill) -> torch.Tensor | None:
    """Where the slots of the current sequence stand among borrowed keys, [B, M]; None for a layer's own keys."""
    source = key_sequence(target, index, state)
    return None if source is None else state.sequence.slots_in(source, state.layout.real.shape[1])


def _make(target: Target, index: int, name: str, value: Any, state: Prefill, hidden: torch.Tensor) -> Any:
    sequence, family, size = state.sequence, target.family, state.layout.real.shape[1]
    assert sequence.index is not None
    if is_mask_name(name) or _is_mask(value, len(sequence.index), size):
        return _mask(target, index, name, value, state, hidden)
    if name in KEY_PLACES:
        return _carry_places(value, state)
    if target.plan.positions == "renumber" and name in ("position_embeddings", "position_ids"):
        positions = renumbered(target.positions, state)
        return positions if name == "position_ids" else family.rotary(hidden, positions)  # type: ignore[misc]
    if _is_handed_on(value, state):
        assert state.cut_slots is not None
        return gather_tokens(value, state.cut_slots)
    fixed = family.fix_argument(name, gather_argument(name, value, sequence.index, size), sequence)
    if fixed is value and isinstance(value, torch.Tensor) and size in value.shape and value.ndim > 1:
        raise PrunekitError(f"{_where(target, index, name, value)}: prunekit cannot tell its axis of tokens")
    return fixed


def has_masks(arguments: dict[str, object]) -> bool:
    """Whether a layer is given any mask, under whatever name."""
    return any(value is not None and is_mask_name(name) for name, value in arguments.items())


def _where(target: Target, index: int, name: str, value: object) -> str:
    kind = type(target.family.layers[index]).__name__
    what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"type {type(value).__name__}"
    return f"{kind} {index} of '{target.family.model_type}': argument '{name}' of {what}"


def _is_mask(value: object, batch: int, size: int) -> bool:
    """Whether a tensor is a mask by its type and shape: bool, [B or 1, S] or [B or 1, ..., S or 1, S]."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.ndim < 2:
        return False
    if len(value) not in (1, batch):
        return False
    return value.shape[-1] == size and (value.ndim == 2 or value.shape[-2] in (1, size))


def _mask(target: Target, index: int, name: str, value: object, state: Prefill, hidden: torch.Tensor) -> Any:
    """A mask of a layer for the current sequence: over queries and keys on both axes, of padding with padding slots.

    None stands for no padding, and all of it causal. Rows of unequal length need a mask then: of padding where the
    layer mixes neighbours, also beside its attention (whose tap makes the mask over keys, see ``mask_over_keys``).
    """
    if isinstance(value, dict):
        return {key: _mask(target, index, f"{name}[{key}]", v, state, hidden) for key, v in value.items()}
    if isinstance(value, bool | int | str):  # a switch
        return value
    sequence, family, size = state.sequence, target.family, state.layout.real.shape[1]
    keys, options = key_sequence(target, index, state), (family.implementation, hidden.dtype)
    assert sequence.index is not None
    batch = len(sequence.index)
    if value is None:
        if family.takes_padding_mask(index) or (family.mixes_and_attends(index) and keys is None):
            return sequence.valid
        if name != "attention_mask":
            if sequence.valid is None or (family.convolves(index) and not family.attends(index)):
                return sequence.valid
            raise PrunekitError(
                f"{type(family.layers[index]).__name__} {index} of '{family.model_type}' is given no '{name}': "
                "prunekit does not know which mask it wants of rows of unequal length"
            )
    elif not isinstance(value, torch.Tensor):
        raise PrunekitError(f"{_where(target, index, name, value)} is no mask that prunekit knows")
    elif value.ndim == 2 and value.shape[1] == size and len(value) in (1, batch):
        return padding_mask(value.expand(batch, -1), sequence, state.layout.real)
    elif value.ndim == 3 and value.shape[1:] == (size, size) and len(value) in (1, batch):
        return prefill_mask(value[:, None], sequence, *options)[:, 0]  # type: ignore[index]
    elif value.ndim == 4 and value.shape[2:] == (1, size) and len(value) in (1, batch) and keys is None:
        return take_columns(value, sequence.index, sequence.valid)
    elif value.ndim != 4 or value.shape[2:] != (size, size) or len(value) not in (1, batch):
        raise PrunekitError(f"{_where(target, index, name, value)} is no mask that prunekit knows")
    if keys is not None:
        return shared_mask(value, sequence, keys, size, *options)
    return prefill_mask(value, sequence, *options)


def _is_handed_on(value: object, state: Prefill) -> bool:
    """Whether a layer behind a cut is given what the layer before it made of each token, [B, M, ...] with the slots
    that stood before the cut."""
    if not isinstance(value, torch.Tensor) or value.ndim < 3 or len(state.sequences) < 2 or state.cut_slots is None:
        return False
    before = state.sequences[-2]
    if before.index is None or before.number == state.sequence.number:
        return False
    return value.shape[:2] == before.index.shape and value.shape[1] != state.layout.real.shape[1]


def renumbered(positions: torch.Tensor | None, state: Prefill) -> torch.Tensor:
    """The position ids [B, M] of a sequence without the gaps: less the tokens that went before each."""
    sequence, real_BS = state.sequence, state.layout.real
    assert sequence.index is not None
    used_BM = torch.ones_like(sequence.index) if sequence.valid is None else sequence.valid.long()
    used_BM = used_BM * real_BS.gather(1, sequence.index)
    before_BM = real_BS.cumsum(1).gather(1, sequence.index) - used_BM.cumsum(1)
    if positions is None:
        positions = torch.arange(real_BS.shape[1], device=sequence.index.device)[None]
    return (positions.expand(len(real_BS), -1).gather(1, sequence.index) - before_BM * used_BM).clamp(min=0)


def _carry_places(places: torch.Tensor, state: Prefill) -> torch.Tensor:
    """Chosen keys [B, S, K] of the layer before a cut, as places in the shortened sequence.

    A key that went is replaced by the query itself, which always may be seen; -1 stays "none".
    """
    slots_BM = state.cut_slots
    if slots_BM is None or places.shape[1] == slots_BM.shape[1]:
        return places
    chosen_BMK = places.gather(1, slots_BM[..., None].expand(-1, -1, places.shape[2])).long()
    slot_BM = torch.arange(slots_BM.shape[1], device=slots_BM.device).expand_as(slots_BM)
    slot_BS = torch.full(places.shape[:2], -1, device=slots_BM.device).scatter(1, slots_BM, slot_BM)
    place_BMK = slot_BS.gather(1, chosen_BMK.clamp(min=0).flatten(1)).view_as(chosen_BMK)
    place_BMK = torch.where(place_BMK < 0, slot_BM[..., None], place_BMK)
    return torch.where(chosen_BMK < 0, chosen_BMK, place_BMK).to(places.dtype)
