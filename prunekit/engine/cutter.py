"""A cut, wherever it is: view -> scores -> counts -> selection -> reduction -> record -> shorten.

The steps are those of ``Cutter``; a ``CutSite`` knows the sequence in which it happens, that of a decoder layer
(``decoder_cut``) or of a block of the vision encoder (``encoder_cut``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunekit.components.base import Reduced, RowScorer
from prunekit.engine.answers import ask, check_answer, check_reduced, place_of
from prunekit.engine.evidence import Evidence
from prunekit.engine.plan import Parts
from prunekit.tensors.indexing import on_device
from prunekit.views.doubts import Doubt
from prunekit.views.trace import CutRecord


@dataclass(frozen=True)
class Choice:
    """What stays at a cut.

    Attributes:
        kept: tokens that stay as they are, bool [B, N].
        added: how many tokens the reducer is to add to each sample.
        counts: visual tokens of each sample from here on, the added ones included.
    """

    kept: torch.Tensor
    added: tuple[int, ...]
    counts: tuple[int, ...]


class CutSite(ABC):
    """Where a cut is due. B samples (in an encoder images) with up to N visual tokens.

    Attributes:
        view: the layer that the tokens enter, or the block that they are in.
        layers: whose evidence decides.
        evidence: what the pass has gathered so far.
        standing: how many visual tokens of each sample stand.
        quota: how many of them are to stay, none more than stand.
        patches: bool [B, N], the tokens that a reducer can make others of; None if all.
        doubts: of the pass.
    """

    view: Any
    layers: tuple[int, ...]
    evidence: Evidence
    standing: Sequence[int]
    quota: Sequence[int]
    patches: torch.Tensor | None = None
    doubts: list[Doubt]

    @property
    def alive(self) -> torch.Tensor:
        """Visual tokens that stand, bool [B, N], on the device of the view."""
        return self.view.alive

    @abstractmethod
    def tokens(self) -> torch.Tensor:
        """What a reducer works on, [B, N, D]."""

    @abstractmethod
    def sizes(self) -> torch.Tensor:
        """How many original tokens each stands for, [B, N]."""

    @abstractmethod
    def sources(self) -> torch.Tensor | None:
        """The visual token under whose name each lives on so far, long [B, N], -1 where it is lost; None if no cut has
        kept a map."""

    @abstractmethod
    def record(self, cut: CutRecord) -> None:
        """Note a cut for the trace."""

    @abstractmethod
    def leave(self) -> torch.Tensor:
        """The hidden states [B, S, D], where nothing goes."""

    @abstractmethod
    def shorten(self, stays: torch.Tensor, choice: Choice, reduced: Reduced | None) -> torch.Tensor:
        """The hidden states [B, M, D] of what ``stays`` [B, N], as ``reduced`` has made it."""


class Cutter:
    """Cuts by the components of a plan. It keeps nothing of a cut, and may serve several threads."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def cut(self, site: CutSite) -> torch.Tensor:
        """Decide what goes, and shorten the sequence to what stays: its hidden states [B, M, D]."""
        scores_BN = site.evidence.fuse(self.parts, site.layers, site.view).masked_fill(~site.alive, torch.nan)
        flags_B = (scores_BN.isnan() & site.alive).any(1)
        site.doubts.append(Doubt(f"NaN scores at the cut before {place_of(site.view)}", flags_B))
        choice = self.choose(site, scores_BN)
        return self.apply(site, scores_BN, choice)

    def choose(self, site: CutSite, scores_BN: torch.Tensor) -> Choice:
        """What stays by its scores [B, N] (NaN where gone).

        The new counts follow from numbers of the host; the data are looked at only for selectors that are not exact.
        """
        selector, reducer, view = self.parts.selector, self.parts.reducer, site.view
        device, counts = view.hidden_states.device, list(site.quota)
        if counts == list(site.standing):
            return Choice(site.alive, (0,) * len(counts), tuple(counts))
        if selector.adapts_count:
            counts = self._adapted(site, counts)
        pairs = list(zip(site.standing, counts, strict=True))
        split = lambda: [reducer.split(view, now, keep) if keep < now else (keep, 0) for now, keep in pairs]  # noqa: E731
        shares = ask(reducer, "split", view, split)
        if site.patches is not None:
            shares = _of_patches(shares, (site.patches & site.alive).sum(1).tolist())
        quota_B = on_device([selected for selected, _ in shares], device)
        ranked_BN = scores_BN.nan_to_num(nan=-torch.inf)
        kept_BN = ask(selector, "select", view, lambda: selector.select(view, ranked_BN, quota_B))
        kept_BN = check_answer(selector, "select", view, kept_BN, site.alive.shape, "bool")
        self._doubt_selection(site, kept_BN, quota_B)
        selected = [selected for selected, _ in shares] if selector.exact else kept_BN.sum(1).tolist()
        rest = [now - k for now, k in zip(site.standing, selected, strict=True)]
        if site.patches is not None:
            rest = (site.patches & site.alive & ~kept_BN).sum(1).tolist()
        added = tuple(min(more, n) for (_, more), n in zip(shares, rest, strict=True))
        return Choice(kept_BN, added, tuple(k + more for k, more in zip(selected, added, strict=True)))

    def apply(self, site: CutSite, scores_BN: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Reduce, record and shorten to what was chosen by scores [B, N]: its hidden states [B, M, D]."""
        if choice.counts == tuple(site.standing):
            site.record(CutRecord(site.view.site, site.view.layer, choice.kept, scores_BN, sources=site.sources()))
            return site.leave()
        reduced = (
            self.reduce(site, scores_BN.nan_to_num(nan=-torch.inf), choice) if self.parts.reducer.reduces else None
        )
        added_BN = None if reduced is None else reduced.added
        stays_BN = choice.kept if added_BN is None else choice.kept | added_BN
        sources_BN = carry_sources(site.sources(), site.alive, stays_BN, None if reduced is None else reduced.sources)
        site.record(CutRecord(site.view.site, site.view.layer, stays_BN, scores_BN, added_BN, sources_BN))
        return site.shorten(stays_BN, choice, reduced)

    def reduce(self, site: CutSite, ranked_BN: torch.Tensor, choice: Choice) -> Reduced:
        """What the reducer makes of the cut; ``ranked`` are the scores [B, N], -inf where gone."""
        reducer, view, tokens_BND = self.parts.reducer, site.view, site.tokens()
        kept_BN, alive_BN = choice.kept, site.alive
        if site.patches is not None:  # the others are not the reducer's to make
            kept_BN, alive_BN = kept_BN & site.patches, alive_BN & site.patches
        count_B = on_device(choice.added, tokens_BND.device)
        options = dict(view=view, tokens=tokens_BND, sizes=site.sizes(), scores=ranked_BN, kept=kept_BN, alive=alive_BN)
        answer = ask(reducer, "reduce", view, lambda: reducer.reduce(**options, count=count_B))  # type: ignore[arg-type]
        reduced = check_reduced(reducer, view, answer, tokens_BND)
        added_BN = torch.zeros_like(kept_BN) if reduced.added is None else reduced.added
        wrong_B = (added_BN & (choice.kept | ~site.alive)).any(1) | (added_BN.sum(1) != count_B)
        what = f"{type(reducer).__name__}.reduce added other tokens than it was asked for at {place_of(view)}"
        site.doubts.append(Doubt(what, wrong_B))
        return reduced

    def _adapted(self, site: CutSite, counts: list[int]) -> list[int]:
        """The counts that the evidence asks for, by the rows of the scorer's queries in the last layer of it."""
        selector, scorer, view = self.parts.selector, self.parts.scorer, site.evidence.views[site.layers[-1]]
        assert isinstance(scorer, RowScorer)  # the planner refuses any other
        quota_B = on_device(counts, site.alive.device)
        rows_BQS = ask(scorer, "chosen_queries", view, lambda: view.attention(scorer.chosen_queries(view))).mean(1)  # type: ignore[arg-type]
        rows_BQN = view.visual(rows_BQS.transpose(1, 2)).transpose(1, 2).to(site.alive.device) * site.alive[:, None]
        answer = ask(selector, "counts", site.view, lambda: selector.counts(rows_BQN, quota_B, site.alive))
        adapted = check_answer(selector, "counts", site.view, answer, quota_B.shape, "long").tolist()
        return [min(max(n, 0), now) for n, now in zip(adapted, site.standing, strict=True)]

    def _doubt_selection(self, site: CutSite, kept_BN: torch.Tensor, quota_B: torch.Tensor) -> None:
        selector = self.parts.selector
        name, where = type(selector).__name__, place_of(site.view)
        site.doubts.append(Doubt(f"{name}.select kept tokens that are gone at {where}", (kept_BN & ~site.alive).any(1)))
        if selector.exact:
            what = f"{name}.select kept another number of tokens than it was asked for at {where}"
            site.doubts.append(Doubt(what, kept_BN.sum(1) != quota_B))


def _of_patches(shares: list[tuple[int, int]], patches: list[int]) -> list[tuple[int, int]]:
    """Shares of selected and added tokens where only so many have a patch behind them, to make others of."""
    limits = [min(more, max(0, n - selected)) for (selected, more), n in zip(shares, patches, strict=True)]
    return [(selected + more - m, m) for (selected, more), m in zip(shares, limits, strict=True)]


def carry_sources(
    before: torch.Tensor | None, alive: torch.Tensor, stays: torch.Tensor, targets: torch.Tensor | None
) -> torch.Tensor | None:
    """The map of sources [B, N] after a cut that leaves ``stays``, where what goes lives on under ``targets``; None
    while no cut has given any."""
    if before is None and targets is None:
        return None
    own_BN = torch.arange(stays.shape[1], device=stays.device).expand_as(stays)
    step_BN = torch.where(stays, own_BN, -1 if targets is None else targets)
    before_BN = own_BN.masked_fill(~alive, -1) if before is None else before.to(stays.device)
    return torch.where(before_BN < 0, -1, step_BN.gather(1, before_BN.clamp(min=0)))
