"""The slow references that pruning is held against.

Three of them, from plain to general: decoders of llama's kind under masks of our own (``dense_with_hidden_keys``), and
scores by loops over their attention (``scores``), use nothing of prunekit. For every family, the dense model goes
through its own masks with the cut tokens' keys closed (``masked``); there only the adapters' word is taken on where
the decoder's layers are. Layers that mix tokens by a state or a convolution have no keys to close: "masked" then means
that each sample's mixer runs on its remaining tokens alone, one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from prunekit.engine.cache import cache_in, is_cache
from prunekit.families import Family, make_family
from zoo import Batch
from zoo.base import VOCAB, WORDS

Hidden = dict[int, torch.Tensor]
"""For each cut layer, which dense positions [B, S] are hidden from there on."""


def hidden_keys(batch: Batch, cuts: list[Any]) -> Hidden:
    """From a trace's cuts: for each cut layer, which dense positions [B, S] are hidden from there on."""
    hidden = {}
    for cut in cuts:
        gone = torch.zeros_like(batch.visual)
        for b in range(gone.shape[0]):
            places = batch.visual[b].nonzero()[:, 0]
            gone[b, places[~cut.kept[b, : len(places)]]] = True
        hidden[cut.layer] = gone
    return hidden


# ---- plain masks: no word of prunekit is taken


@contextmanager
def plain_masks(model: Any, real: torch.Tensor, hidden: Hidden) -> Iterator[None]:
    """Every decoder layer under a mask of our own: causal, over the ``real`` tokens [B, S'], without the keys that are
    ``hidden`` from that layer on. For decoders whose layers take such a mask; nothing of prunekit has a part in it."""
    length, handles = real.shape[1], []
    causal = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, :]
    for index, layer in enumerate(model.get_decoder().layers):
        allowed = causal.clone()
        for cut, gone in hidden.items():
            if index >= cut:
                allowed[:, :, : gone.shape[1]] &= ~gone[:, None, :]
        additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]

        def replace(module: Any, args: Any, kwargs: Any, additive: torch.Tensor = additive) -> Any:
            return args, {**kwargs, "attention_mask": additive}

        handles.append(layer.register_forward_pre_hook(replace, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def eager_attentions(model: Any, batch: Batch, hidden: Hidden) -> list[np.ndarray]:
    """Attention [B, H, S, S] of each layer of the eager dense model under plain masks."""
    with torch.no_grad(), plain_masks(model, batch.mask, hidden):
        attentions = model(**batch.inputs, use_cache=False, output_attentions=True).attentions
    return [layer.double().numpy() for layer in attentions]


def dense_with_hidden_keys(
    model: Any, batch: Batch, hidden: Hidden, new: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The dense model, eager and without cache, under plain masks. With ``new`` it decodes greedily by running the
    whole sequence again for each token.

    Returns:
        Logits of the prompt [B, S, V], greedy tokens [B, new] (None without ``new``), logits of each step [B, new, V].
    """
    ids, mask, tokens, steps = batch.ids, batch.inputs["attention_mask"], [], []
    prompt = None
    for _ in range(max(1, new + 1)):
        inputs = {**batch.inputs, "input_ids": ids, "attention_mask": mask}
        inputs["position_ids"] = positions(model, batch, ids.shape[1], bool(new))
        with torch.no_grad(), plain_masks(model, mask.bool(), hidden):
            logits = model(**inputs, use_cache=False).logits
        if prompt is None:
            prompt = logits
        steps.append(logits[:, -1])
        tokens.append(steps[-1].argmax(-1))
        ids = torch.cat([ids, tokens[-1][:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return prompt, torch.stack(tokens[:new], 1) if new else None, torch.stack(steps[: max(new, 1)], 1)


def positions(model: Any, batch: Batch, length: int, generating: bool) -> torch.Tensor:
    """Position ids of the prompt and of ``length - S`` tokens after it, as the model numbers them.

    A plain forward counts places; ``generate`` counts real tokens and gives padding 0, and a new token follows the
    last position, padding or not. With M-RoPE positions are triples.
    """
    mask, size = batch.inputs["attention_mask"], batch.ids.shape[1]
    plain = torch.arange(size).expand_as(mask)
    if generating:
        plain = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    if "image_grid_thw" in batch.inputs:
        types, grid = batch.inputs["mm_token_type_ids"], batch.inputs["image_grid_thw"]
        plain, _ = model.model.get_rope_index(batch.ids, types, grid, attention_mask=mask)
    return torch.cat([plain, plain[..., -1:] + torch.arange(1, length - size + 1)], -1)


# ---- scores as their formulas read


def query_rows(batch: Batch, b: int, which: str, alive: list[int]) -> list[int]:
    """Dense positions of a query set of sample ``b``; ``alive`` are its visual tokens still standing."""
    real = [s for s in range(batch.ids.shape[1]) if batch.mask[b, s]]
    visual = [s for s in real if batch.visual[b, s]]
    if which == "visual":
        return alive
    if which == "last":
        return [real[-1]]
    text = [s for s in real if s not in visual and s > visual[0]]
    return text if which == "text" else [s for s in real if s not in visual or s in alive]


def received(matrix: np.ndarray, rows: list[int], column: int, heads: str = "mean") -> float:
    """Mean over the rows that can see the column (causal) of the head-mean or head-max attention [H, S, S]."""
    values = []
    for row in rows:
        if row >= column:
            per_head = [matrix[h, row, column] for h in range(matrix.shape[0])]
            values.append(max(per_head) if heads == "max" else sum(per_head) / len(per_head))
    return sum(values) / len(values) if values else 0.0


def rollout(matrices: list[np.ndarray], residual: float = 0.5) -> np.ndarray:
    """[1, S, S]: Â_last ··· Â_first with Â = residual·I + (1 − residual)·headmean(A)."""
    size = matrices[0].shape[-1]
    product = np.eye(size)
    for matrix in matrices:
        product = (residual * np.eye(size) + (1 - residual) * matrix.mean(0)) @ product
    return product[None]


def scores(
    attentions: list[np.ndarray],
    batch: Batch,
    *,
    queries: str,
    layers: list[int],
    fusion: str = "multi",
    weights: list[float] | None = None,
    kept: torch.Tensor | None = None,
    heads: str = "mean",
) -> list[dict[int, float]]:
    """For each sample: dense position of a standing visual token -> score, from the evidence of ``layers``.

    ``kept`` [B, N] is what an earlier cut left (None: everything).
    """
    weights_by_layer = []
    for b in range(batch.ids.shape[0]):
        places = [s for s in range(batch.ids.shape[1]) if batch.visual[b, s]]
        alive = [p for n, p in enumerate(places) if kept is None or kept[b, n]]
        if fusion == "rollout":
            evidence = [rollout([attentions[layer][b] for layer in layers])]
            shares = [1.0]
        else:
            evidence = [attentions[layer][b] for layer in layers]
            shares = weights or [1 / len(layers)] * len(layers)
        rows = query_rows(batch, b, queries, alive)
        weights_by_layer.append(
            {p: sum(w * received(m, rows, p, heads) for w, m in zip(shares, evidence, strict=True)) for p in alive}
        )
    return weights_by_layer


def compare(cut_scores: torch.Tensor, expected: list[dict[int, float]], batch: Batch) -> float:
    """Largest difference between a cut's scores [B, N] and the expected ones; NaN exactly where none is expected."""
    worst = 0.0
    for b, values in enumerate(expected):
        places = [s for s in range(batch.ids.shape[1]) if batch.visual[b, s]]
        for n in range(cut_scores.shape[1]):
            got = float(cut_scores[b, n])
            if n >= len(places) or places[n] not in values:
                assert np.isnan(got)
            else:
                worst = max(worst, abs(got - values[places[n]]))
    return worst


# ---- every family, through its own masks


def mixes_neighbours(family: Family, layer: int) -> bool:
    """Whether a layer mixes tokens by a state or a convolution, beside its attention or instead of it."""
    convolves = any(isinstance(module, torch.nn.Conv1d) for module in family.layers[layer].modules())
    return family.takes_padding_mask(layer) or convolves or "conv_mask" in family.layer_arguments


def has_recurrent_layers(family: Family) -> bool:
    return any(mixes_neighbours(family, i) for i in range(family.depth))


@contextmanager
def masked(model: Any, batch: Batch, hidden: Hidden, more: torch.Tensor | None = None):
    """The model with the keys of ``hidden`` closed from each cut layer on, and ``more`` [B, S] added to the logits of
    keys from the first cut layer on."""
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
                layer.forward = _sample_by_sample(layer, family.layer_arguments, batch.mask & ~gone)
            else:
                slot = family.cache_slots[family.key_layers[index]][0]
                hook = _close_columns(family.layer_arguments, gone, total, slot, more)
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, forward in patched:
            layer.forward = forward


def _close_columns(
    names: tuple[str, ...], gone: torch.Tensor, total: dict[str, int], slot: int, more: torch.Tensor | None = None
) -> Callable[..., Any]:
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
        if more is not None:
            lowest = torch.finfo(hidden.dtype).min
            mask = torch.where(mask, 0.0, lowest) if mask.dtype == torch.bool else mask
            column = torch.zeros(len(gone), max(total["tokens"], gone.shape[1]))
            column[:, : gone.shape[1]] = more
            column = column[:, start : start + mask.shape[-1]][:, None, None]
            mask = torch.where(mask > lowest / 2, mask + column, mask)
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
