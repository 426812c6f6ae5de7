"""The reference for every family: the dense model itself, through its own masks, with the cut tokens' keys closed.

Nothing of the engine is used but the adapters' word on where the decoder's layers are. Layers that mix tokens by a
state or a convolution have no keys to close: there "masked" means that each sample's mixer runs on its remaining
tokens alone, one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

from prunekit.engine.cache import cache_in, is_cache
from prunekit.families import Family, make_family
from zoo import Batch
from zoo.base import VOCAB, WORDS

Hidden = dict[int, torch.Tensor]


def hidden_positions(batch: Batch, cuts: list[Any]) -> Hidden:
    """From a trace's cuts: for each cut layer, which dense positions [B, S] are hidden from there on."""
    hidden = {}
    for cut in cuts:
        gone = torch.zeros_like(batch.visual)
        for b in range(gone.shape[0]):
            places = batch.visual[b].nonzero()[:, 0]
            gone[b, places[~cut.kept[b, : len(places)]]] = True
        hidden[cut.layer] = gone
    return hidden


def real_tokens(batch: Batch) -> torch.Tensor:
    """Bool [B, S]: not padding."""
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.visual) if mask is None else mask.bool()


def mixes_neighbours(family: Family, layer: int) -> bool:
    """Whether a layer mixes tokens by a state or a convolution, beside its attention or instead of it."""
    convolves = any(isinstance(module, torch.nn.Conv1d) for module in family.layers[layer].modules())
    return family.takes_padding_mask(layer) or convolves or "conv_mask" in family.layer_arguments


def has_recurrent_layers(family: Family) -> bool:
    return any(mixes_neighbours(family, i) for i in range(family.depth))


@contextmanager
def masked(model: Any, batch: Batch, hidden: Hidden):
    """The model with the keys of ``hidden`` closed from each cut layer on."""
    family = make_family(model)
    total = {"tokens": 0}
    handles, patched = [], []

    def count_tokens(module: Any, args: Any, kwargs: Any) -> None:
        ids, cache = kwargs.get("input_ids", args[0] if args else None), cache_in(kwargs)
        new = ids.shape[1] if ids is not None else kwargs["inputs_embeds"].shape[1]
        total["tokens"] = new + (cache.get_seq_length() if cache is not None else 0)

    handles.append(family.core.register_forward_pre_hook(count_tokens, with_kwargs=True, prepend=True))
    try:
        for index, layer in enumerate(family.layers):
            gone = torch.zeros_like(batch.visual)
            for cut, positions in hidden.items():
                gone |= positions & (index >= cut)
            if not gone.any():
                continue
            if mixes_neighbours(family, index):
                patched.append((layer, layer.forward))
                layer.forward = _sample_by_sample(layer, family.layer_arguments, real_tokens(batch) & ~gone)
            else:
                slot = family.cache_slots[family.key_layers[index]][0]
                hook = _close_columns(family.layer_arguments, gone, total, slot)
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, forward in patched:
            layer.forward = forward


def _close_columns(names: tuple[str, ...], gone: torch.Tensor, total: dict[str, int], slot: int) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        mask, hidden = named.get("attention_mask"), named[names[0]]
        if mask is None:  # all of it causal: say so
            queries, keys = hidden.shape[-2], total["tokens"]
            if (cache := cache_in(named)) is not None and slot < len(cache.layers):
                keys = min(keys, cache.get_mask_sizes(queries, slot)[0])  # fewer where a window slides under no mask
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(hidden.dtype).min)[None, None]
        closed = torch.zeros(gone.shape[0], max(total["tokens"], gone.shape[1]), dtype=torch.bool)
        closed[:, : gone.shape[1]] = gone
        start = total["tokens"] - mask.shape[-1]  # a sliding layer's mask starts later
        closed = closed[:, start : start + mask.shape[-1]]
        fill = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        named["attention_mask"] = mask.expand(len(gone), -1, -1, -1).masked_fill(closed[:, None, None, :], fill)
        return (named.pop(names[0]),), named

    return hook


def _sample_by_sample(layer: Any, names: tuple[str, ...], stays: torch.Tensor) -> Callable[..., Any]:
    """The layer on each sample's remaining tokens alone, without a cache."""
    forward = layer.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        named = {name: None if is_cache(value) else value for name, value in named.items()}
        hidden = named.pop(names[0])
        size, outputs = hidden.shape[1], []
        for b in range(hidden.shape[0]):
            more = torch.ones(size - stays.shape[1], dtype=torch.bool)
            places = torch.cat([stays[b], more]).nonzero()[:, 0]
            own = {k: _rows(k, v, b, places, size) for k, v in named.items()}
            with _true_distances(layer, places):
                output = forward(hidden[b : b + 1, places], **own)
            outputs.append((places, output if isinstance(output, tuple) else (output,)))
        dense = [_dense([(places, output[i]) for places, output in outputs], size) for i in range(len(outputs[0][1]))]
        return tuple(dense) if isinstance(output, tuple) else dense[0]

    return run


def _dense(rows: list[tuple[torch.Tensor, Any]], size: int) -> torch.Tensor | None:
    """What a layer makes of each sample's remaining tokens [1, M, ...], at their places [B, S, ...]; None for what is
    not per token."""
    places, first = rows[0]
    if not isinstance(first, torch.Tensor) or first.shape[:2] != (1, len(places)):
        return None
    dense = first.new_zeros(len(rows), size, *first.shape[2:])
    for b, (places, value) in enumerate(rows):
        dense[b, places] = value[0]
    return dense


@contextmanager
def _true_distances(layer: Any, places: torch.Tensor):
    """A bias by distance (Inkling) counts places of the dense sequence: ``places`` of those that remain."""
    bias = getattr(getattr(layer, "self_attn", None), "rel_logits_proj", None)
    hook = lambda module, args: (args[0], places, places)  # noqa: E731
    handle = None if bias is None else bias.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _rows(name: str, value: Any, b: int, places: torch.Tensor, size: int) -> Any:
    if isinstance(value, dict):
        return {key: _rows(name, v, b, places, size) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(name, v, b, places, size) for v in value)
    if not isinstance(value, torch.Tensor) or size not in value.shape:
        return value
    if value.ndim == 4 and value.shape[2:] == (size, size):
        return value.expand(max(b + 1, len(value)), -1, -1, -1)[b : b + 1, :, places][..., places]
    if name == "relative_distance":  # [S, S], the same for all samples (Inkling 2 of transformers 5.24)
        return value[places][:, places]
    axis = 1 if value.ndim == 3 and value.shape[1] == size else value.ndim - 1
    axis = {"position_embeddings": value.ndim - 2, "position_ids": value.ndim - 1, "block_states": 1}.get(name, axis)
    value = value.index_select(axis, places)
    return value if value.shape[axis - 1] == 1 else value.narrow(axis - 1, b, 1)


def prompt_logits(model: Any, batch: Batch, hidden: Hidden, **more: Any) -> torch.Tensor:
    """Logits [B, S, V] of the prompt."""
    options = {"use_cache": False} if has_recurrent_layers(make_family(model)) else {}
    with torch.no_grad(), masked(model, batch, hidden):
        return model(**batch.inputs, **options, **more).logits


def step_logits(model: Any, batch: Batch, hidden: Hidden, new: int) -> torch.Tensor:
    """Logits [B, new, V] of greedy decoding, with the dense cache; families with recurrent layers run the whole
    sequence again for each token (not for right padding)."""
    if not has_recurrent_layers(make_family(model)):
        with torch.no_grad(), masked(model, batch, hidden):
            return generate(model, batch.inputs, new)
    inputs, steps = dict(batch.inputs), []
    for _ in range(new):
        numbers = {}
        if model.config.model_type == "inkling2":  # its queries are scaled by position, which generate counts anew
            numbers["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad(), masked(model, batch, hidden):
            steps.append(model(**inputs, **numbers, use_cache=False).logits[:, -1])
        size = inputs["input_ids"].shape[1]
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape[:2] == (len(batch.visual), size) and value.ndim == 2:
                fresh = {"input_ids": steps[-1][:, : WORDS[1]].argmax(-1), "attention_mask": torch.ones(len(value))}
                column = fresh.get(name, torch.zeros(len(value))).to(value.dtype)
                inputs[name] = torch.cat([value, column[:, None]], 1)
    return torch.stack(steps, 1)


def generate(model: Any, inputs: dict[str, Any], new: int) -> torch.Tensor:
    """Logits [B, new, V] of greedy ``generate``, which chooses ordinary words only."""
    made = model.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        suppress_tokens=list(range(WORDS[1], VOCAB)),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.logits, 1)
