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
from typing import Any

import torch

from prunekit.engine.cache import cache_in
from prunekit.engine.cutter import Choice, CutSite
from prunekit.engine.decoder_cut import DecoderCut, LayerCutter
from prunekit.engine.guards import checkpoints
from prunekit.engine.lookahead import view_ahead
from prunekit.engine.plan import Plan
from prunekit.engine.prefill import Gates, Prefill
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import scatter_where
from prunekit.tensors.masks import weigh_columns
from prunekit.tensors.sequences import CompactSequence
from prunekit.views.trace import CutRecord

FLOOR = 1e-16
"""What is added to a gate before its logarithm: with gate 0 a key keeps this share of its weight."""

Gate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(scores [B, N], kept [B, N], alive [B, N]) -> the gate of each token that stood before the cut, [B, N] in [0, 1]."""


class GateCutter(LayerCutter):
    """Cuts of a model in training. Trace, schedule and selection are those of a pruned prefill; positions and the
    shapes of all hidden states are those of the dense one.

    Args:
        gate: makes the gates of a cut from its scores.

    Raises:
        PrunekitError: for what a gate cannot stand for: reducers that change tokens, cuts inside the encoder,
            renumbered positions.
    """

    def __init__(self, plan: Plan, gate: Gate) -> None:
        super().__init__(plan)
        self.plan, self.gate = plan, gate
        if plan.reducer.reduces:
            raise PrunekitError(f"a gate stands for reducer 'drop', not '{plan.reducer.registered_name}'")
        if plan.cuts_inside_encoder:
            raise PrunekitError("a gate cannot stand for a cut inside the vision encoder")
        if plan.adaptive is not None:
            name = plan.adaptive.registered_name
            raise PrunekitError(f"schedule '{name}' counts by each sample; a gate knows no other counts than planned")
        if plan.positions != "keep":
            raise PrunekitError(f"positions={plan.positions}: a gate leaves tokens where they are (positions=keep)")

    def check(self, target: Target) -> None:
        """Raise for layers without a mask over keys, and for keys that a layer borrows under gradient checkpointing."""
        family, first = target.family, self.plan.first_layer
        blind = [i for i in range(first, family.depth) if family.takes_padding_mask(i)]
        if blind or any(not family.attends(i) for i in range(first, family.depth)):
            reason = f"{family.implementation}, layers {blind}" if blind else "layers without attention"
            raise PrunekitError(f"'{family.model_type}': a gate needs a mask over keys in every layer ({reason})")
        lenders = [i for i in self.plan.evidence_layers if family.key_layers[i] != i]
        if lenders and checkpoints(family):
            raise PrunekitError(f"gradient checkpointing: layers {lenders} of '{family.model_type}' borrow their keys")

    def begin(self, state: Prefill, inputs: dict[str, object]) -> None:
        if cache_in(inputs) is not None or inputs.get("use_cache") is not False:
            raise PrunekitError("a gated forward pass stores no cache: call the model with use_cache=False")
        state.gates = Gates(state.kept.float())

    def apply(self, site: CutSite, scores_BN: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Close the gates of what would go. Tokens removed by an earlier cut keep their gate."""
        assert isinstance(site, DecoderCut)
        state, layout, alive_BN = site.state, site.state.layout, site.alive
        assert state.gates is not None
        gate_BN = self.gate(scores_BN, choice.kept, alive_BN)
        product_BN = state.gates.product * torch.where(alive_BN, gate_BN.to(state.gates.product), 1.0)
        column_BN = (product_BN + FLOOR).log().masked_fill(~layout.exists, 0.0)
        size = layout.real.shape[1]
        state.gates = Gates(product_BN, scatter_where(column_BN, layout.visual_index, layout.exists, size))
        site.record(CutRecord(site.view.site, site.view.layer, choice.kept, scores_BN))
        closed_BN = layout.exists & ~choice.kept
        gone_BS = scatter_where(closed_BN, layout.visual_index, closed_BN, size)
        lengths = tuple(n + count for n, count in zip(site.others, choice.counts, strict=True))
        state.kept = choice.kept
        state.sequence = CompactSequence(
            state.sequence.number + 1, None, layout.real & ~gone_BS, lengths
        )  # dense, some of it unused
        return site.hidden

    def pass_on(
        self, target: Target, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, object]
    ) -> Any:
        """The layer's arguments with the gates in its mask."""
        closed = state.gates is not None and state.gates.bias is not None
        if closed:
            mask = arguments.get("attention_mask")
            assert mask is None or isinstance(mask, torch.Tensor)
            arguments = {**arguments, "attention_mask": self._gated(target, mask, state, hidden)}
        if index in self.plan.evidence_layers and checkpoints(target.family) and self.plan.scorer.uses_attention:
            self._look(target, index, state, hidden, arguments)
        return ((hidden,), arguments) if closed else None

    def _gated(self, target: Target, mask: torch.Tensor | None, state: Prefill, hidden: torch.Tensor) -> torch.Tensor:
        """An additive mask [B, 1|H, S, S]: the layer's own plus the logarithm of the gates; made once a cut."""
        assert state.gates is not None and state.gates.bias is not None
        key = ("gated mask", id(mask), state.sequence.number)
        if key not in state.arguments:
            size, bias_BS = hidden.shape[target.family.token_axis], state.gates.bias.to(hidden.device)
            state.arguments[key] = mask, weigh_columns(mask, bias_BS, size, hidden.dtype)
        return state.arguments[key][1]

    def _look(
        self, target: Target, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, object]
    ) -> None:
        """Under gradient checkpointing what is seen inside a layer cannot be used outside of it: the evidence is taken
        by running the layer up to its attention once more, outside of the checkpoint."""
        layer: Any = target.family.layers[index]
        layer.gradient_checkpointing = False
        try:
            view = view_ahead(target, index, state, hidden, arguments)
        finally:
            layer.gradient_checkpointing = True
        state.evidence.add(self.plan, view)
