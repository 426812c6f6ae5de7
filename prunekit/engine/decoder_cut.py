"""A cut before a decoder layer: what the ``Cutter`` sees of a prefill, and how the prefill is shortened."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.components.base import Reduced
from prunekit.engine.adaptive import adapted_counts
from prunekit.engine.cutter import Choice, CutSite, Cutter
from prunekit.engine.layer_inputs import compact
from prunekit.engine.lookahead import view_ahead
from prunekit.engine.prefill import Prefill
from prunekit.engine.target import Target
from prunekit.engine.weighing import check_weighing
from prunekit.errors import PrunekitError
from prunekit.tensors.indexing import gather_tokens, put_where, ragged_index, scatter_where
from prunekit.views.trace import CutRecord


class DecoderCut(CutSite):
    """A cut before layer ``index``, which ``hidden`` [B, M, D] and ``arguments`` are about to enter.

    Attributes:
        others: real tokens of each sample that are not visual.
        projects: whether a reducer works on what the projector reads; where videos are pooled behind the projector, it
            works on the visual tokens.
    """

    def __init__(
        self, target: Target, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, object]
    ) -> None:
        cut, layout, family = target.plan.cuts[index], state.layout, target.family
        self.target, self.state, self.hidden = target, state, hidden
        self.layers, self.evidence, self.doubts = cut.evidence, state.evidence, state.doubts
        self.others = [whole - n for whole, n in zip(layout.lengths, layout.counts, strict=True)]
        self.standing = [now - n for now, n in zip(state.sequence.lengths, self.others, strict=True)]
        if index in cut.evidence:
            view = view_ahead(target, index, state, hidden, arguments)
            state.evidence.add(target.plan, view)
        if target.plan.adaptive is not None and state.counts is None:
            state.counts = adapted_counts(target.plan, state)
        wanted = [
            target.plan.quota(index, n, length) if n else 0
            for n, length in zip(layout.counts, layout.prompt_lengths, strict=True)
        ]
        if state.counts is not None:
            wanted = list(state.counts[index])
        self.quota = [min(count, now) for count, now in zip(wanted, self.standing, strict=True)]
        self.view = state.view(index, family.one_state(hidden), family.grid, cut.site)
        self.projects = target.plan.reducer.acts_before_projector and cut.site == "input"
        tower = self.view.vision.tower if self.projects else None
        if tower is not None and (tower.tiled or tower.twins):  # of newlines and CLS tokens nothing can be made
            self.patches = self.view.vision.exists.to(self.alive.device)
        if self.projects and any(run.pooled_behind for run in self.view.vision.records):
            if len(self.view.vision.records) > 1:
                raise PrunekitError(
                    "images and videos in one batch: the model pools videos behind its projector, before which the "
                    f"reducer '{target.plan.reducer.registered_name}' makes tokens; give it one kind at a time"
                )
            self.projects = False  # tokens are made of tokens, since nothing before them is one

    def tokens(self) -> torch.Tensor:
        if self.projects:
            return self.view.vision.features.to(self.view.hidden_states.device)
        return gather_tokens(self.hidden, self.view.slots)

    def sizes(self) -> torch.Tensor:
        sizes_BN = self.state.layout.exists.float() if self.state.sizes is None else self.state.sizes
        return sizes_BN.to(self.view.hidden_states.device)

    def sources(self) -> torch.Tensor | None:
        return self.state.cuts[-1].sources if self.state.cuts else None

    def record(self, cut: CutRecord) -> None:
        self.state.cuts.append(cut)

    def leave(self) -> torch.Tensor:
        return self.hidden

    def shorten(self, stays: torch.Tensor, choice: Choice, reduced: Reduced | None) -> torch.Tensor:
        state, axis = self.state, self.target.family.token_axis
        goes_B1 = (self.alive & ~stays).any(1, keepdim=True)  # a sample of which nothing goes stays as it is
        hidden = self.hidden if reduced is None else self._written(reduced, stays & goes_B1, max(choice.counts))
        lengths = tuple(n + count for n, count in zip(self.others, choice.counts, strict=True))
        hidden = gather_tokens(hidden, state.shorten(stays.to(state.kept.device), lengths), axis)
        if reduced is not None and self.target.plan.positions == "renumber":
            order_BN = reduced.order if reduced.order is not None else reduced.added
            if order_BN is not None:
                hidden = gather_tokens(hidden, state.rearrange(order_BN.long() * goes_B1), axis)
        if self.target.plan.weighs_attention and state.sizes is not None:
            state.weigh()
        return hidden

    def _written(self, reduced: Reduced, stays_BN: torch.Tensor, most: int) -> torch.Tensor:
        """The hidden states with what the reducer made in the slots of what ``stays``, at most ``most`` a sample."""
        tokens_BND = reduced.tokens
        if reduced.sizes is not None:
            self.state.sizes = reduced.sizes
        if self.patches is not None:
            stays_BN = stays_BN & self.patches  # a newline that stays is what it was
        if self.projects:
            index_BM, valid_BM = ragged_index(stays_BN, min(most, stays_BN.shape[1]))
            assert self.target.encoder is not None
            projected_BMD = self.target.encoder.project(gather_tokens(tokens_BND, index_BM))
            tokens_BND = scatter_where(projected_BMD, index_BM, valid_BM, stays_BN.shape[1])
        return put_where(self.hidden, tokens_BND, self.view.slots, stays_BN)


class LayerCutter(Cutter):
    """The cutter of decoder layers, which also says what the layers behind a cut are given."""

    def check(self, target: Target) -> None:
        """Raise for a model on which it cannot work."""
        if target.plan.weighs_attention:
            check_weighing(target)

    def begin(self, state: Prefill, inputs: dict[str, object]) -> None:
        """A prefill begins; ``inputs`` are those of the core model."""

    def pass_on(
        self, target: Target, index: int, state: Prefill, hidden: torch.Tensor, arguments: dict[str, object]
    ) -> Any:
        """What layer ``index`` is given instead of its arguments; None for these themselves."""
        if state.sequence.index is None:
            return None
        return (hidden,), {name: compact(target, index, name, x, state, hidden) for name, x in arguments.items()}
