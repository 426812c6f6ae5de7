"""KV-cache layers behind a cut: they hold fewer keys than the model believes, and say so.

transformers sizes decode masks and positions from the cache, sometimes from a layer behind the cut. A pruned layer
therefore reports the dense length, remembers which dense position each stored key has, and refuses to be continued
by a forward pass that its pruner does not see.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from prunekit.engine.prefill import Prefill
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.tensors.sequences import CompactSequence

if TYPE_CHECKING:
    from transformers import Cache


class PrunedLayerMixin:
    """Put in front of a cache layer's class once a prefill has filled it with fewer keys than the sequence is long.

    Positions of keys are made when they are asked for: a step that needs no mask does nothing but store its keys.

    Attributes:
        prompt_index: dense position of each key of the prompt that was stored, [B, M]; -1 for padding, None once reset.
        dense_length: tokens that the model has seen.
        prompt_length: those of the pruned prefill.
        removed: how many real tokens of each sample are missing, [B].
        padded: whether some sample has padding slots here.
        sequence: number of the sequence whose layers share these positions.
        lent_count: how many keys the latest update returned, those that a sliding layer then forgot included.
        gone: for each layer that borrows these keys after a later cut, the positions it must not see, bool [B, S].
        log_sizes: what is added to the logits of the prompt's keys, by dense position [B, S]; None for nothing.
        prompt_known: whether the prefill's caller said where the prompt ends; else what follows may be the rest of it.
        owner: the session whose pruner made it.
        keys, values: what is stored, [B, H, stored, d].
        cumulative_length: of a sliding layer, the tokens by which transformers sizes its masks.
    """

    prompt_index: torch.Tensor | None
    dense_length: int
    prompt_length: int
    removed: torch.Tensor
    padded: bool
    sequence: int
    lent_count: int
    gone: dict[int, torch.Tensor]
    log_sizes: torch.Tensor | None
    prompt_known: bool
    owner: weakref.ref[Any]
    keys: torch.Tensor
    values: torch.Tensor
    cumulative_length: int

    def get_seq_length(self, *args: object) -> int:
        return self.dense_length

    def update(self, key_states: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        if self.prompt_index is None:  # reset: an ordinary empty layer again
            return super().update(key_states, *args, **kwargs)  # type: ignore[misc]
        session = self.owner()
        if session is None or not session.inside():
            raise PrunekitError("this KV cache was pruned by prunekit: continue it inside the pruner that made it")
        count = key_states.shape[-2]
        self.lent_count = self.stored_count + count  # a layer that records its past stores more than it returns
        keys_and_values = super().update(key_states, *args, **kwargs)  # type: ignore[misc]
        self.dense_length += count
        return keys_and_values

    @property
    def stored_count(self) -> int:
        """How many stored keys the next update returns: of a sliding layer's record of its past, the window's."""
        stored, window = self.keys.shape[-2], getattr(self, "sliding_window", None)
        return stored if window is None else min(stored, window - 1)

    @property
    def key_index(self) -> torch.Tensor:
        """Dense position of each stored key, [B, stored]; -1 for padding."""
        return self._latest(self.stored_count)

    @property
    def lent(self) -> torch.Tensor:
        """Positions of the keys that the latest update returned, [B, stored + new]."""
        return self._latest(self.lent_count)

    @property
    def lent_log_sizes(self) -> torch.Tensor:
        """What is added to the logits of the keys that the latest update returned, [B, stored + new]."""
        assert self.log_sizes is not None
        index_BK, size = self.lent, self.log_sizes.shape[1]
        outside_BK = (index_BK < 0) | (index_BK >= size)
        return self.log_sizes.gather(1, index_BK.clamp(0, size - 1)).masked_fill(outside_BK, 0.0)

    def index_with(self, count: int) -> torch.Tensor:
        """Dense positions of the stored keys and of ``count`` new ones behind them, [B, stored + count]."""
        index_BK = self.key_index
        new_Q = torch.arange(self.dense_length, self.dense_length + count, device=index_BK.device)
        return torch.cat([index_BK, new_Q.expand(len(index_BK), -1)], dim=1)

    def _latest(self, count: int) -> torch.Tensor:
        """Positions of the last ``count`` keys, [B, count]: those of the prompt, then every one since."""
        assert self.prompt_index is not None
        new_K = torch.arange(self.prompt_length, self.dense_length, device=self.prompt_index.device)
        index_BK = torch.cat([self.prompt_index, new_K.expand(len(self.prompt_index), -1)], dim=1)
        return index_BK[:, index_BK.shape[1] - count :]

    def columns(self, key_index: torch.Tensor, length: int, mask_length: int, queries: int) -> torch.Tensor:
        """Where stored keys and ``queries`` new ones stand in a mask [.., mask_length] of the model: [B, stored + new].

        ``length`` is the dense length without the new ones. Negative for padding, and for what a sliding window left.
        """
        new_BQ = torch.arange(length, length + queries, device=key_index.device).expand(key_index.shape[0], -1)
        return torch.cat([key_index, new_BQ], dim=1) - (length + queries - mask_length)

    def window_start(self, new: int = 0) -> int:
        """The first position that a dense sliding layer would still have, before the ``new`` tokens it stored last.

        It is not always the model's mask that closes earlier ones: without a mask all that is stored is seen.
        """
        window = getattr(self, "sliding_window", None)
        return 0 if window is None else max(0, self.dense_length - new - window + 1)

    def lent_index(self, borrower: int, queries: int) -> torch.Tensor:
        """Positions of the keys handed to a layer that borrows them, without the ``queries`` new ones, [B, stored]; -1
        where it must not look."""
        index_BK = self.lent[:, : self.lent.shape[1] - queries]
        if borrower not in self.gone:
            return index_BK
        gone_BS = self.gone[borrower]
        hidden_BK = gone_BS.gather(1, index_BK.clamp(0, gone_BS.shape[1] - 1)) & (index_BK < gone_BS.shape[1])
        return index_BK.masked_fill(hidden_BK, -1)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens. The prompt's tail behind the last token that went is whole, and may go as well.

        Raises:
            PrunekitError: for a sliding window, whose older keys are gone.
        """
        if self.prompt_index is None:
            return super().crop(tokens_to_remove)  # type: ignore[misc]
        count, window = abs(tokens_to_remove), getattr(self, "sliding_window", None)
        stored = self.keys.shape[-2]
        into_prompt = max(0, count - (self.dense_length - self.prompt_length))
        if window is not None:
            remaining = self.prompt_index.shape[1] + self.dense_length - self.prompt_length - count
            if stored - count < min(window - 1, remaining):
                raise PrunekitError("a pruned sliding-window KV cache that has forgotten keys cannot be cropped")
        if into_prompt:
            self._crop_prompt(into_prompt)
        if window is None:
            super().crop(tokens_to_remove)  # type: ignore[misc]
        self.dense_length -= count
        if window is not None:  # by itself it would take the dense length for that of its keys
            kept = slice(max(0, stored - count - window + 1), stored - count)
            self.keys, self.values = self.keys[..., kept, :], self.values[..., kept, :]
            self.cumulative_length = self.dense_length

    def _crop_prompt(self, count: int) -> None:
        """Forget the last ``count`` tokens of the prompt, if all of them are stored in every sample."""
        assert self.prompt_index is not None
        tail_M = torch.arange(self.prompt_length - count, self.prompt_length, device=self.prompt_index.device)
        if count > self.prompt_index.shape[1] or not bool((self.prompt_index[:, -count:] == tail_M).all()):
            raise PrunekitError("a pruned KV cache cannot be cropped to before the last token that was removed")
        self.prompt_index, self.prompt_length = self.prompt_index[:, :-count], self.prompt_length - count
        self.log_sizes = None if self.log_sizes is None else self.log_sizes[:, : self.prompt_length]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._select(torch.arange(len(self.removed)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.prompt_index, self.dense_length, self.prompt_length = None, 0, 0

    def _select(self, sample_B: torch.Tensor) -> None:
        if self.prompt_index is not None:
            sample_B = sample_B.to(self.prompt_index.device)
            self.prompt_index, self.removed = self.prompt_index[sample_B], self.removed[sample_B]
            self.gone = {layer: gone[sample_B] for layer, gone in self.gone.items()}
            self.log_sizes = None if self.log_sizes is None else self.log_sizes[sample_B]


class PromptKeepingMixin(PrunedLayerMixin):
    """The same for a layer whose window holds new tokens only, and which never forgets its prompt (Unlimited-OCR), of
    which ``stored_prompt`` keys stayed."""

    stored_prompt: int

    def window_start(self, new: int = 0) -> int:
        return 0

    @property
    def stored_count(self) -> int:
        new = self.dense_length - self.prompt_length
        return self.stored_prompt + (min(new, self.keys.shape[-2]) if new else 0)

    def _latest(self, count: int) -> torch.Tensor:
        assert self.prompt_index is not None
        new_K = torch.arange(self.prompt_length, self.dense_length, device=self.prompt_index.device)
        new_K = new_K[len(new_K) - (count - self.stored_prompt) :]
        return torch.cat([self.prompt_index, new_K.expand(len(self.prompt_index), -1)], dim=1)

    def columns(self, key_index: torch.Tensor, length: int, mask_length: int, queries: int) -> torch.Tensor:
        columns_BK = super().columns(key_index, length, mask_length, queries)
        columns_BK[:, : self.stored_prompt] = key_index[:, : self.stored_prompt]
        return columns_BK

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise PrunekitError("a pruned sliding-window KV cache cannot be cropped")


_pruned_classes: dict[type, type] = {}


def _pruned_class(kind: type) -> Any:
    """The pruned kind of a cache layer's class."""
    if issubclass(kind, PrunedLayerMixin):
        return kind
    if kind not in _pruned_classes:
        mixin = PromptKeepingMixin if hasattr(kind, "set_prefill_length") else PrunedLayerMixin
        # transformers registers every subclass that has a _layer_type as what new caches are made of: this one has
        # none while it is made.
        pruned_class = type(f"Pruned{kind.__name__}", (mixin, kind), {"_layer_type": None})
        pruned_class._layer_type = getattr(kind, "_layer_type", None)  # type: ignore[attr-defined]
        _pruned_classes[kind] = pruned_class
    return _pruned_classes[kind]


def is_cache(value: object) -> bool:
    """Whether a value is a KV cache, by its type: argument names differ between models and releases ("cache",
    "past_key_values", "layer_past"). The paged cache of continuous batching, no subclass of the others, counts too."""
    from transformers import Cache

    if value is None or isinstance(value, torch.Tensor | bool | int | float | str | tuple | list | dict):
        return False
    return isinstance(value, Cache) or hasattr(value, "get_seq_length") or "Cache" in type(value).__name__


def cache_in(*arguments: object) -> Cache | None:
    """The KV cache among positional or named arguments, or in the output, of a model or a layer; None if there is
    none."""
    for values in arguments:
        if isinstance(values, Mapping):
            values = values.values()
        if isinstance(values, Iterable) and not isinstance(values, torch.Tensor):
            for value in values:
                if is_cache(value):
                    return value
    return None


def is_fresh(cache: Cache | None) -> bool:
    """Whether a prefill starts: there is no cache, or nothing in it. Raises for the paged cache of continuous batching,
    in which requests of all lengths stand one behind the other, in prefill and in decoding."""
    if cache is not None and not hasattr(cache, "get_seq_length"):
        name = type(cache).__name__
        raise PrunekitError(f"{name} of continuous batching cannot hold pruned keys: use generate() with a batch")
    if cache is None:
        return True
    try:
        return cache.get_seq_length() == 0
    except ValueError:  # of a cache of recurrent states alone, which has no length
        return not cache.has_previous_state()


def check_cache(cache: Cache, first_layer: int) -> None:
    """Raise for a cache whose layers cannot hold a sequence that is shortened from ``first_layer`` on."""
    from transformers import cache_utils

    kinds = {type(layer) for layer in getattr(cache, "layers", ())} or {
        getattr(cache, "layer_class_to_replicate", type(cache))
    }
    names = ("DynamicLayer", "LinearAttentionCacheLayerMixin", "DummyLayer")  # not all of them in older releases
    supported = tuple(getattr(cache_utils, name) for name in names if hasattr(cache_utils, name))
    bad = {
        kind.__name__
        for kind in kinds
        if not issubclass(kind, supported) or issubclass(kind, cache_utils.QuantizedLayer)
    }
    if bad or getattr(cache, "offloading", False):
        what = ", ".join(sorted(bad)) or "offloading"
        raise PrunekitError(f"{type(cache).__name__} with {what} cannot hold pruned keys: use a DynamicCache")
    states = [layer for layer in cache.layers[first_layer:] if getattr(layer, "record_past", False)]
    if wound := {type(layer).__name__ for layer in states if not hasattr(layer, "sliding_window")}:
        what = ", ".join(sorted(wound))
        raise PrunekitError(
            f"a pruned {what} cannot be wound back: no assisted or prompt-lookup decoding of this model"
        )


def holds_keys(layer: object) -> bool:
    """Whether a cache layer stores keys of the tokens (and not only a recurrent state, or nothing)."""
    return getattr(layer, "keys", None) is not None


def is_plain(cache: Cache) -> bool:
    """Whether no layer of a cache needs a mask of its own: none holds padding, none lends keys across a cut."""
    pruned_layers = (layer for layer in getattr(cache, "layers", ()) if isinstance(layer, PrunedLayerMixin))
    return not any(layer.padded or layer.gone or layer.window_start() > 0 for layer in pruned_layers)


def seal_layers(cache: Cache, state: Prefill, family: Family, owner: object) -> None:
    """Put pruned layers in place of the cache layers behind a cut, and tell lenders what borrowers must not see."""
    size = state.layout.real.shape[1]
    for index, sequence in enumerate(state.sequences):
        source = family.key_layers[index]
        slots = family.cache_slots[source]
        if sequence.index is None or slots[-1] >= len(cache.layers) or not holds_keys(cache.layers[slots[0]]):
            continue
        if source == index:
            for slot in slots:
                seal(cache, slot, sequence, state, owner)
        elif sequence.number != state.sequences[source].number:
            if not isinstance(cache.layers[source], PrunedLayerMixin):
                index_BS = torch.arange(size, device=sequence.index.device).expand(len(state.layout.counts), -1)
                dense = CompactSequence(0, index_BS, None, state.layout.lengths)
                seal(cache, source, dense, state, owner)
            cache.layers[source].gone[index] = ~sequence.present(size)


def seal(cache: Cache, layer: int, sequence: CompactSequence, state: Prefill, owner: object) -> None:
    """Put a pruned layer in place of ``cache.layers[layer]``, which a pruned prefill filled; checks its keys' shape.

    Raises:
        PrunekitError: if the layer stored another number of keys than were to stay.
    """
    cache_layer = cache.layers[layer]
    assert sequence.index is not None
    window, prompt = getattr(cache_layer, "sliding_window", None), getattr(cache_layer, "prefill_keys", None)
    stored = (cache_layer.keys if prompt is None else prompt).shape[-2]
    sliding = window is not None and prompt is None
    forgets = sliding and not getattr(cache_layer, "record_past", False)
    expected = min(sequence.index.shape[1], window - 1) if forgets else sequence.index.shape[1]  # type: ignore[operator]
    if stored != expected:
        raise PrunekitError(f"layer {layer} stored {stored} keys, {expected} were to stay")
    kind = _pruned_class(type(cache_layer))
    pruned = kind.__new__(kind)
    pruned.__dict__.update(cache_layer.__dict__)
    cache.layers[layer] = cache_layer = pruned
    index_BM = sequence.index if sequence.valid is None else sequence.index.masked_fill(~sequence.valid, -1)
    cache_layer.prompt_index = index_BM[:, index_BM.shape[1] - expected :]
    dense_length = state.layout.real.shape[1]
    cache_layer.dense_length = cache_layer.prompt_length = dense_length
    cache_layer.prompt_known = state.prompt_known
    if sliding:
        cache_layer.cumulative_length = dense_length  # what masks are sized by
    elif prompt is not None:
        cache_layer.prefill_length = cache_layer.prefill_cumulative_length = dense_length
        cache_layer.stored_prompt = expected
    cache_layer.removed, cache_layer.log_sizes = state.removed(sequence), sequence.log_sizes
    cache_layer.padded = sequence.valid is not None
    cache_layer.sequence, cache_layer.lent_count, cache_layer.gone = sequence.number, expected, {}
    cache_layer.owner = weakref.ref(owner)
