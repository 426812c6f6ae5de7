"""Pruning that a loss can reach: nothing is removed, what would go is closed to later layers by a gate.

A hard choice has no gradient. Here the sequence stays dense; from a cut on, the logarithm of each visual token's gate
is added to the attention mask's column of it:

    softmax(q·k + log(g + FLOOR)),   g = 1 where a token stays, 0 where it goes

so that a token with gate 0 is hidden as removal would hide it, and the gradient of the loss with respect to g says for
every token, kept or not, what a little more of it would be worth. From g it flows into the scores and through them into
the fusion's weights and the layers that made the evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunekit.engine.ahead import view_ahead
from prunekit.engine.cache import cache_in
from prunekit.engine.guards import checkpoints
from prunekit.engine.hooks import Session
from prunekit.engine.layout import Stage
from prunekit.engine.plan import Plan
from prunekit.engine.state import CutRecord, Gates, Prefill
from prunekit.errors import PrunekitError
from prunekit.families import Family

FLOOR = 1e-16
"""What is added to a gate before its logarithm: with gate 0 a key keeps this share of its weight."""

Gate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(scores [B, N], kept [B, N], alive [B, N]) -> the gate of each token that stood before the cut, [B, N] in [0, 1]."""


class GateSession(Session):
    """A pruner on a model in training. Trace, schedule and selection are those of a pruned prefill; positions and the
    shapes of all hidden states are those of the dense one.

    Args:
        gate: makes the gates of a cut from its scores.

    Raises:
        PrunekitError: for what a gate cannot stand for: reducers that change tokens, cuts inside the encoder,
            renumbered positions, layers without a mask over keys.
    """

    def __init__(self, plan: Plan, family: Family, gate: Gate) -> None:
        super().__init__(plan, family)
        self.gate = gate
        self._check()

    def _check(self) -> None:
        plan, family = self.plan, self.family
        if plan.reducer.changes_tokens or plan.reducer.adds_tokens:
            raise PrunekitError(f"a gate stands for reducer 'drop', not '{plan.reducer.registered_name}'")
        if plan.cuts_inside_encoder:
            raise PrunekitError("a gate cannot stand for a cut inside the vision encoder")
        if plan.positions != "keep":
            raise PrunekitError(f"positions={plan.positions}: a gate leaves tokens where they are (positions=keep)")
        self.check_masks()
        lenders = [i for i in self.plan.evidence_layers if family.key_layers[i] != i]
        if lenders and checkpoints(family):
            raise PrunekitError(f"gradient checkpointing: layers {lenders} of '{family.model_type}' borrow their keys")

    def check_masks(self) -> None:
        family = self.family
        blind = [i for i in range(self.plan.first_layer, family.depth) if family.takes_padding_mask(i)]
        if blind or any(not family.attends(i) for i in range(self.plan.first_layer, family.depth)):
            reason = f"{family.implementation}, layers {blind}" if blind else "layers without attention"
            raise PrunekitError(f"'{family.model_type}': a gate needs a mask over keys in every layer ({reason})")

    def _enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._enter(core, args, kwargs)
        if cache_in(kwargs) is not None or kwargs.get("use_cache") is not False:
            raise PrunekitError("a gated forward pass stores no cache: call the model with use_cache=False")
        if (state := self._prefill()) is not None:
            state.gates = Gates(state.kept.float())

    def _cut(self, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        """Decide what would stay and close the gates of the rest. Of tokens that went before, this cut says nothing."""
        scores, view, choice = self._decide(index, state, hidden, arguments)
        gates, layout, alive = state.gates, state.layout, state.kept
        assert gates is not None
        gate = self.gate(scores, choice.kept, alive)
        gates.product = gates.product * torch.where(alive, gate.to(gates.product), 1.0)
        column = (gates.product + FLOOR).log().masked_fill(~layout.exists, 0.0)
        spare = layout.real.shape[1]
        places = layout.visual_index.masked_fill(~layout.exists, spare)
        gates.bias = column.new_zeros(len(column), spare + 1).scatter(1, places, column)[:, :spare]
        state.cuts.append(CutRecord(view.site, index, choice.kept, scores))
        gone = torch.zeros(len(alive), spare + 1, dtype=torch.bool, device=alive.device)
        gone = gone.scatter(1, places.masked_fill(choice.kept, spare), True)[:, :spare]
        everywhere = torch.arange(spare, device=alive.device).expand(len(alive), -1)
        state.kept = choice.kept
        state.stage = Stage(state.stage.number + 1, everywhere, layout.real & ~gone, choice.lengths)
        return hidden

    def _passed_on(self, index: int, state: Prefill, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        """The layer's arguments with the gates in its mask."""
        gates = state.gates
        assert gates is not None
        if gates.bias is not None:
            kwargs = {**kwargs, "attention_mask": self._gated(kwargs.get("attention_mask"), state, hidden)}
        if index in self.plan.evidence_layers and checkpoints(self.family) and self.plan.scorer.uses_attention:
            self._look(index, state, hidden, kwargs)
        return None if gates.bias is None else ((hidden,), kwargs)

    def _gated(self, mask: torch.Tensor | None, state: Prefill, hidden: torch.Tensor) -> torch.Tensor:
        """An additive mask [B, 1|H, S, S]: the layer's own plus the logarithm of the gates; made once a cut."""
        assert state.gates is not None and state.gates.bias is not None
        key = ("gated mask", id(mask), state.stage.number)
        if key not in state.arguments:
            size, own = hidden.shape[self.family.token_axis], mask
            if mask is None:
                mask = torch.ones(size, size, dtype=torch.bool, device=hidden.device).tril()[None, None]
            if mask.dtype == torch.bool:
                mask = hidden.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
            # The sum of two lowest numbers would be minus infinity, and a row of these NaN.
            bias = state.gates.bias[:, None, None, :].to(mask)
            state.arguments[key] = own, torch.where(mask > torch.finfo(mask.dtype).min / 2, mask + bias, mask)
        return state.arguments[key][1]

    def _look(self, index: int, state: Prefill, hidden: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Under gradient checkpointing what is seen inside a layer cannot be used outside of it: the evidence is taken
        by running the layer up to its attention once more, outside of the checkpoint."""
        layer: Any = self.family.layers[index]
        stage, state.stage = state.stage, replace(state.stage, index=None)  # the arguments are of this stage already
        layer.gradient_checkpointing = False
        try:
            view = view_ahead(self, index, state, hidden, kwargs)
        finally:
            layer.gradient_checkpointing, state.stage = True, stage
        view.stage = stage
        self._keep_evidence(state, index, view)

    def _to_dense(self, layer: nn.Module, args: Any, output: Any) -> Any:
        return None  # it is dense
