"""The decoder run in segments of layers, each on a shortened sequence, without any hook on its layers.

This is the ceiling (the same layers at the same lengths, and nothing else), and the frame in which ``eager_fastv``
does what published code does: full attention weights from an eager layer, and a gather by what they say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.engine.cache import cache_in, is_cache
from prunekit.errors import PrunekitError
from prunekit.families import Family

Shorten = Callable[[torch.Tensor | None, int], torch.Tensor | slice]
"""From the eager weights [B, H, S, S] of the segment's last layer (None without) and the length of the sequence: which
of its rows the next segment gets, [B, M] or a slice."""


@dataclass(frozen=True)
class Segment:
    """Layers ``start`` to ``stop``, by the model's eager attention if ``eager``; ``shorten`` what follows."""

    start: int
    stop: int
    eager: bool = False
    shorten: Shorten | None = None


def ceiling_segments(lengths: tuple[int, ...], size: int | None = None) -> list[Segment]:
    """Segments of equal length of a decoder whose layers process ``lengths`` tokens: the last so many of a prompt of
    ``size``. One without layers comes first if the prompt is shortened before the first."""
    starts = [0, *(i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]), len(lengths)]

    def keep_last(count: int) -> Shorten:
        return lambda _, __: slice(-count, None)

    before = [] if size in (None, lengths[0]) else [Segment(0, 0, shorten=keep_last(lengths[0]))]
    return before + [
        Segment(start, stop, shorten=keep_last(lengths[stop]) if stop < len(lengths) else None)
        for start, stop in itertools.pairwise(starts)
    ]


def eager_segments(lengths: tuple[int, ...], visual: tuple[int, ...], places: torch.Tensor) -> list[Segment]:
    """The same with an eager layer before each cut; of the visual tokens those stay that its last row attends to most
    (head mean), in order, as FastV selects them. ``places`` [N] of the visual tokens, which stand together, on
    the model's device."""
    segments: list[Segment] = []
    standing = places
    for segment in ceiling_segments(lengths):
        if segment.stop == len(lengths):
            segments.append(segment)
            continue
        if segment.stop > segment.start + 1:
            segments.append(Segment(segment.start, segment.stop - 1))
        choose = _choose(standing, visual[segment.stop], lengths[segment.start])
        segments.append(Segment(segment.stop - 1, segment.stop, eager=True, shorten=choose))
        standing = torch.arange(visual[segment.stop], device=places.device) + places[0]
    return segments


def _choose(places: torch.Tensor, keep: int, size: int) -> Shorten:
    """Of the ``places`` in a sequence of ``size`` those ``keep`` that the last row attends to most, and all others."""
    standing = torch.zeros(size, dtype=torch.bool, device=places.device)
    standing[places] = True
    others = (~standing).nonzero()[:, 0]

    def shorten(weights: torch.Tensor | None, _: int) -> torch.Tensor:
        assert weights is not None
        scores = weights.mean(1)[:, -1].index_select(-1, places)
        best = places[scores.topk(keep, dim=-1).indices]
        return torch.cat([others.expand(len(best), -1), best], dim=-1).sort(-1).values

    return shorten


@contextmanager
def segmented(family: Family, segments: list[Segment]) -> Iterator[None]:
    """Inside the block a prefill of the model runs its decoder in ``segments``; decode steps run as they are.

    Raises:
        PrunekitError: for decoders that cannot be taken apart like this.
    """
    decoder: Any = family.decoder
    if not isinstance(getattr(decoder, "norm", None), nn.Module) or family.touches_hidden_between_layers:
        raise PrunekitError(f"bench: the decoder of '{family.model_type}' cannot be run in segments")
    forward = type(decoder).forward

    def run(*args: object, **kwargs: Any) -> object:
        embeds = kwargs.get("inputs_embeds")
        if args or embeds is None or embeds.shape[1] == 1:
            return forward(decoder, *args, **kwargs)
        return _prefill(family, forward, segments, kwargs)

    decoder.forward = run
    try:
        yield
    finally:
        del decoder.forward


def _prefill(family: Family, forward: Callable[..., Any], segments: list[Segment], kwargs: dict[str, Any]) -> object:
    from transformers import DynamicCache

    decoder: Any = family.decoder
    layers, norm, config = decoder.layers, decoder.norm, decoder.config
    named = {k: v for k, v in kwargs.items() if k not in ("attention_mask", cache_name()) and not is_cache(v)}
    hidden, positions = named.pop("inputs_embeds"), named.pop("position_ids", None)
    if positions is None:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    whole = cache_in(kwargs)
    whole = DynamicCache(config=config) if whole is None else whole
    output = None
    try:
        for segment in segments:
            seen: list[torch.Tensor] = []
            if segment.stop > segment.start:
                decoder.layers = layers[segment.start : segment.stop]
                decoder.norm = norm if segment.stop == len(layers) else nn.Identity()
                held = {cache_name(): DynamicCache(config=config)}
                with _weights_of(family, segment) as seen:
                    output = forward(decoder, inputs_embeds=hidden, position_ids=positions, **held, **named)
                for index in range(segment.start, segment.stop):
                    whole.layers[index] = held[cache_name()].layers[index]
                hidden = output.last_hidden_state
            if segment.shorten is not None:
                rows = segment.shorten(seen[-1] if seen else None, hidden.shape[1])
                hidden, positions = _rows(hidden, positions, rows)
    finally:
        decoder.layers, decoder.norm = layers, norm
    assert output is not None
    output[cache_name()] = whole
    return output


def _rows(
    hidden: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor | slice
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(rows, slice):
        return hidden[:, rows].contiguous(), positions[..., rows]
    batch = torch.arange(len(rows), device=rows.device)[:, None]
    places = rows.expand(*positions.shape[:-2], *rows.shape)
    return hidden[batch, rows], positions.expand(*positions.shape[:-2], *(len(rows), -1)).gather(-1, places)


@contextmanager
def _weights_of(family: Family, segment: Segment) -> Iterator[list[torch.Tensor]]:
    """Run the segment by eager attention, and hold the weights that its last layer returns."""
    seen: list[torch.Tensor] = []
    if not segment.eager:
        yield seen
        return
    module: Any = family.attentions[segment.stop - 1]
    decoder: Any = family.decoder
    configs = {id(c): c for c in (decoder.config, module.config)}.values()
    names = [config._attn_implementation for config in configs]
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield seen
    finally:
        handle.remove()
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation = name


def cache_name() -> str:
    """What this transformers calls the cache (renamed in 5.24)."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
