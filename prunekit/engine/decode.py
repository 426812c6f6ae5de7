"""Decode steps on a pruned cache: each layer's mask and positions, as the keys that it stored need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prunekit.engine.cache import PrunedLayerMixin, cache_in
from prunekit.engine.layer_inputs import KEY_PLACES, has_masks
from prunekit.engine.prefill import Prefill
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.families.base import is_mask_name
from prunekit.tensors.masks import decode_mask, prefill_mask

if TYPE_CHECKING:
    from transformers import Cache


def corrects_steps(target: Target) -> bool:
    """Whether decode steps of this pruner and family need more than masks: other positions, arguments of the family's
    own, keys chosen by an earlier layer."""
    family = target.family
    return (
        target.plan.positions == "renumber"
        or target.plan.weighs_attention
        or type(family).decode_arguments is not Family.decode_arguments
        or type(family).takes_local_mask is not Family.takes_local_mask
        or family.single_steps
        or any(name in family.layer_arguments for name in KEY_PLACES)
        or any(family.relative_bias(index) is not None for index in range(family.depth))
    )


def decode_layer(
    target: Target, index: int, hidden: torch.Tensor, kwargs: dict[str, object], memo: dict[tuple[Any, ...], Any]
) -> tuple[tuple[torch.Tensor], dict[str, object]] | None:
    """The arguments of layer ``index`` in a decode step on ``hidden`` [B, Q, D], None if they can stay; ``memo`` lasts
    for the step.

    Raises:
        PrunekitError: for several tokens at a time, on a family that can take only one.
    """
    cache = cache_in(kwargs)
    source = target.family.key_layers[index]
    slot = target.family.cache_slots[source][0]
    cache_layer = cache.layers[slot] if cache is not None and slot < len(cache.layers) else None
    if not isinstance(cache_layer, PrunedLayerMixin) or cache_layer.prompt_index is None:
        return None
    borrows, renumber = index in cache_layer.gone, target.plan.positions == "renumber"
    queries = hidden.shape[target.family.token_axis]
    if queries > 1 and target.family.single_steps:
        name = target.family.model_type
        raise PrunekitError(f"'{name}' can only continue a pruned cache one token at a time, not {queries}")
    own = {}
    if type(target.family).decode_arguments is not Family.decode_arguments:
        own = target.family.decode_arguments(cache_layer.index_with(queries), queries)
    own |= _places(target, index, cache, cache_layer, kwargs, queries)
    closes = cache_layer.padded or borrows or cache_layer.window_start() > 0
    if not own and not renumber and not closes and not has_masks(kwargs):
        return None
    masks = {name: value for name, value in kwargs.items() if is_mask_name(name)}
    masks.setdefault("attention_mask", None)
    kind = target.family.mixes_and_attends(index), index if borrows else -1
    key = (*map(id, masks.values()), cache_layer.sequence, cache_layer.stored_count, cache_layer.window_start(), *kind)
    if key not in memo:
        changed: dict[str, object] = {}
        for name, value in masks.items():
            mask = _mask(target, cache_layer, index, source, name, value, queries, hidden.dtype)
            changed |= {name: mask} if name in kwargs or mask is not None else {}
        changed |= own
        if renumber:
            changed |= _positions(target, hidden, cache_layer, kwargs)
        memo[key] = (masks, changed)
    return (hidden,), {**kwargs, **memo[key][1]}


def _places(
    target: Target, index: int, cache: Cache, cache_layer: PrunedLayerMixin, kwargs: dict[str, object], queries: int
) -> dict[str, torch.Tensor]:
    """Keys that the layer before chose [B, Q, K], as places among this layer's own if a cut lies between."""
    family = target.family
    before = cache.layers[family.cache_slots[family.key_layers[index - 1]][0]] if index else cache_layer
    theirs = before if isinstance(before, PrunedLayerMixin) else None
    places_by_name: dict[str, torch.Tensor] = {}
    for name in KEY_PLACES:
        if isinstance(places := kwargs.get(name), torch.Tensor):
            places_by_name[name] = places
        elif places is not None:
            raise PrunekitError(f"decode step: {name} is a {type(places).__name__}, and only a tensor can be followed")
    if not places_by_name or (theirs is not None and theirs.sequence == cache_layer.sequence):
        return {}
    index_BK = cache_layer.index_with(queries)
    slots_BK = torch.arange(index_BK.shape[1], device=index_BK.device).expand_as(index_BK)
    slot_BS = torch.full((len(index_BK), cache_layer.dense_length + queries + 1), -1, device=index_BK.device)
    slot_BS = slot_BS.scatter(1, index_BK.masked_fill(index_BK < 0, slot_BS.shape[1] - 1), slots_BK)
    slot_BS[:, -1] = -1
    for name, places in places_by_name.items():
        chosen_BQK = places.long()
        index_BQK = chosen_BQK  # dense indices, where that layer has all keys
        if theirs is not None:
            index_BQK = theirs.lent.gather(1, chosen_BQK.clamp(min=0).flatten(1)).view_as(chosen_BQK)
        place_BQK = slot_BS.gather(1, index_BQK.clamp(min=0).flatten(1)).view_as(chosen_BQK)
        # The query itself stands in for a key that went: it may be seen anyway.
        first_new = index_BK.shape[1] - queries
        itself_1Q1 = torch.arange(first_new, index_BK.shape[1], device=index_BK.device)[None, :, None]
        place_BQK = torch.where((place_BQK < 0) | (index_BQK < 0), itself_1Q1, place_BQK)
        places_by_name[name] = torch.where(chosen_BQK < 0, chosen_BQK, place_BQK).to(places.dtype)
    return places_by_name


def _mask(
    target: Target,
    cache_layer: PrunedLayerMixin,
    index: int,
    source: int,
    name: str,
    mask: Any,
    queries: int,
    dtype: torch.dtype,
) -> Any:
    """A mask of a layer over the keys that it stored. Masks of the new tokens alone stay, and so does None where
    nothing is to be closed or the tap closes it."""
    if isinstance(mask, dict):
        return {
            k: _mask(target, cache_layer, index, source, f"{name}[{k}]", v, queries, dtype) for k, v in mask.items()
        }
    if target.family.takes_local_mask(index):
        return mask
    if mask is None and (name != "attention_mask" or target.family.mixes_and_attends(index)):
        return None
    if mask is not None and mask.ndim == 2 and mask.shape[1] == queries and name != "attention_mask":
        return mask
    # A layer that borrows comes after its lender, which has stored the new keys already.
    length = cache_layer.dense_length - (0 if source == index else queries)
    key_index_BK = cache_layer.key_index if source == index else cache_layer.lent_index(index, queries)
    columns_BK = None if mask is None else cache_layer.columns(key_index_BK, length, mask.shape[-1], queries)
    padded = cache_layer.padded or index in cache_layer.gone
    start = cache_layer.window_start() if source == index else 0
    if mask is None and start:
        key_index_BK, padded = key_index_BK.masked_fill(key_index_BK < start, -1), True
    return decode_mask(mask, key_index_BK, columns_BK, padded, queries, target.family.implementation, dtype)


def mask_over_keys(
    target: Target, mask: torch.Tensor | None, state: Prefill | None, query: torch.Tensor
) -> torch.Tensor | None:
    """The mask that the attention function of a layer gets which also mixes neighbours, for q [B, H, Q, d].

    The layer was given a 2-D mask of padding wherever the model's own masks were None (in a prefill), or none at all
    (in decoding), because only here it is known which of its masks is the one over keys.
    """
    implementation = target.family.implementation
    if state is not None:
        if mask is None or mask.ndim != 2:
            return mask
        key = ("mask over keys", state.sequence.number, query.dtype, query.device)
        if key not in state.arguments:
            state.arguments[key] = (None, prefill_mask(None, state.sequence, implementation, query.dtype))
        return state.arguments[key][1]
    cache_layer, queries = target.cache_layer, query.shape[-2]
    if mask is not None or cache_layer is None:
        return mask
    start = cache_layer.window_start(queries)
    if not cache_layer.padded and not start:
        return mask
    key_index_BK = cache_layer.lent[:, :-queries]
    key_index_BK = key_index_BK.masked_fill(key_index_BK < start, -1)
    return decode_mask(None, key_index_BK, None, True, queries, implementation, query.dtype)


def _positions(
    target: Target, hidden: torch.Tensor, cache_layer: PrunedLayerMixin, kwargs: dict[str, object]
) -> dict[str, object]:
    """Position ids [B, Q] less the tokens that went, and their rotary embeddings."""
    positions = target.positions
    if positions is None:
        start = cache_layer.dense_length
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
    positions = positions - cache_layer.removed[:, None]
    changed: dict[str, object] = {}
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = positions
    if kwargs.get("position_embeddings") is not None:
        changed["position_embeddings"] = target.family.rotary(hidden, positions)  # type: ignore[misc]
    return changed
