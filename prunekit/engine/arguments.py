"""What a decoder layer is given beside its hidden states, made to match a shortened sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prunekit.engine.layout import Stage
from prunekit.engine.masks import prefill_mask, shared_mask
from prunekit.engine.state import Prefill, gather_argument

if TYPE_CHECKING:
    from prunekit.engine.hooks import Session

PADDING_MASKS = ("conv_mask",)
"""2-D padding masks of convolutions that go with a 4-D ``attention_mask``; None stands for no padding."""

KEY_PLACES = ("prev_topk_indices",)
"""Places of keys that an earlier layer chose for each query, [B, S, K]."""


def compact(session: Session, index: int, name: str, value: Any, state: Prefill, hidden: torch.Tensor) -> Any:
    """A layer's argument as the current stage needs it; made once a stage and shared by its layers."""
    masks = name == "attention_mask" or name in PADDING_MASKS
    if not masks and not isinstance(value, torch.Tensor | tuple | list | dict):
        return value
    keys = key_stage(session, index, state)
    flags = session.family.takes_padding_mask(index), -1 if keys is None else keys.number
    key = (name, id(value), state.stage.number, flags)
    if key not in state.memo:
        state.memo[key] = (value, _make(session, index, name, value, state, hidden))
    return state.memo[key][1]


def key_stage(session: Session, index: int, state: Prefill) -> Stage | None:
    """The stage of the keys that a layer borrows from an earlier one, None if they are those of its own stage."""
    source = state.stages[session.family.key_layers[index]]
    return source if source.number != state.stage.number else None


def foreign_keys(session: Session, index: int, state: Prefill) -> torch.Tensor | None:
    """Where the slots of the current stage stand among borrowed keys, [B, M]; None for a layer's own keys."""
    source = key_stage(session, index, state)
    return None if source is None else state.stage.slots_in(source, state.layout.real.shape[1])


def _make(session: Session, index: int, name: str, value: Any, state: Prefill, hidden: torch.Tensor) -> Any:
    stage, family, size = state.stage, session.family, state.layout.real.shape[1]
    assert stage.index is not None
    if name == "attention_mask":
        if value is None and family.takes_padding_mask(index):
            return stage.valid
        keys = key_stage(session, index, state)
        if keys is not None:
            return shared_mask(value, stage, keys, size, family.implementation, hidden.dtype)
        return prefill_mask(value, stage, family.implementation, hidden.dtype)
    if name in PADDING_MASKS:
        return stage.valid if value is None else prefill_mask(value, stage, family.implementation, hidden.dtype)
    if name in KEY_PLACES:
        return _carry_places(value, state)
    if session.pruner.positions == "renumber" and name in ("position_embeddings", "position_ids"):
        numbers = renumbered(session.positions, state)
        return numbers if name == "position_ids" else family.rotary(hidden, numbers)  # type: ignore[misc]
    return family.fix_argument(name, gather_argument(name, value, stage.index, size), stage)


def renumbered(positions: torch.Tensor | None, state: Prefill) -> torch.Tensor:
    """The position ids [B, M] of a stage without the gaps: less the tokens that went before each."""
    stage, real = state.stage, state.layout.real
    assert stage.index is not None
    used = torch.ones_like(stage.index) if stage.valid is None else stage.valid.long()
    used = used * real.gather(1, stage.index)
    before = real.cumsum(1).gather(1, stage.index) - used.cumsum(1)
    if positions is None:
        positions = torch.arange(real.shape[1], device=stage.index.device)[None]
    return (positions.expand(len(real), -1).gather(1, stage.index) - before * used).clamp(min=0)


def _carry_places(places: torch.Tensor, state: Prefill) -> torch.Tensor:
    """Chosen keys [B, S, K] of the layer before a cut, as places in the shortened sequence.

    A key that went is replaced by the query itself, which always may be seen; -1 stays "none".
    """
    slots = state.cut_slots
    if slots is None or places.shape[1] == slots.shape[1]:
        return places
    rows = places.gather(1, slots[..., None].expand(-1, -1, places.shape[2])).long()
    order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    moved = torch.full(places.shape[:2], -1, device=slots.device).scatter(1, slots, order)
    found = moved.gather(1, rows.clamp(min=0).flatten(1)).view_as(rows)
    found = torch.where(found < 0, order[..., None], found)
    return torch.where(rows < 0, rows, found).to(places.dtype)
