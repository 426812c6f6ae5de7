"""A look ahead: what the layer that tokens are about to enter would make of those that are about to go."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.engine.cache import is_cache
from prunekit.engine.layer_inputs import compact
from prunekit.engine.precision import model_precision
from prunekit.engine.prefill import Prefill
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.tensors.attention import AttentionInputs
from prunekit.views.layer import LayerView


class Peeked(Exception):
    """Leaves a layer that runs for its queries and keys alone, before it attends."""

    def __init__(self, inputs: AttentionInputs) -> None:
        super().__init__()
        self.inputs = inputs


def view_ahead(
    target: Target, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, object]
) -> LayerView:
    """The view of layer ``index`` on the sequence before its cut; ``hidden`` [B, M, D] and ``arguments`` are what the
    model gives the layer.

    Where the scorer reads attention, the layer's own norm and projections run up to its attention function, without
    the cache: a layer run twice on one cache would leave its keys and values there twice.
    """
    view = state.view(index, target.family.one_state(hidden), target.family.grid)
    if target.plan.scorer.uses_attention:
        if state.sequence.index is not None:
            state.sequences.append(state.sequence)  # whose keys the layer attends to, while its arguments are made
            arguments = {name: compact(target, index, name, v, state, hidden) for name, v in arguments.items()}
            state.sequences.pop()
        inputs = _peek(target, target.family.layers[index], hidden, arguments)
        if inputs.queries.device != view.hidden_states.device:  # the layer lives on another device than the one before
            view = state.view(index, view.hidden_states.to(inputs.queries.device), target.family.grid)
        view.inputs = inputs
    return view


def _peek(target: Target, layer: nn.Module, hidden: torch.Tensor, arguments: dict[str, object]) -> AttentionInputs:
    """What a tapped layer would hand to its attention function for ``hidden``."""
    blank: dict[str, object] = {name: None for name, value in arguments.items() if is_cache(value)}
    if "use_cache" in arguments:
        blank["use_cache"] = False
    with target.looking_ahead(), model_precision():
        try:
            layer.forward(hidden, **arguments | blank)
        except Peeked as seen:
            return seen.inputs
    raise PrunekitError(f"fusion 'ahead': {type(layer).__name__} did not come to its attention function")
