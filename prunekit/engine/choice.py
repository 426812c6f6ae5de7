"""At a cut: how many tokens stay and which, and what the reducer makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.components.base import RowScorer
from prunekit.engine.state import Prefill
from prunekit.engine.target import Target
from prunekit.engine.view import LayerView
from prunekit.tensors.indexing import gather_tokens, on_device, put_where, ragged_index, scatter_where


@dataclass(frozen=True)
class Choice:
    """The outcome of a selection.

    Attributes:
        kept: tokens that stay as they are, bool [B, N].
        added: how many tokens the reducer is to add for each sample; empty if none anywhere.
        lengths: real tokens of each sample from here on, the added ones included.
    """

    kept: torch.Tensor
    added: tuple[int, ...]
    lengths: tuple[int, ...]


def choose(target: Target, index: int, state: Prefill, scores: torch.Tensor, view: LayerView) -> Choice:
    """What stays before layer ``index`` of what stands, by ``scores`` [B, N] (NaN where gone).

    The new lengths follow from counts on the host; the data are looked at only for selectors that are not exact.
    """
    layout, plan = state.layout, target.plan
    selector, reducer = plan.selector, plan.reducer
    text = [full - n for full, n in zip(layout.lengths, layout.counts, strict=True)]
    standing = [now - t for now, t in zip(state.stage.lengths, text, strict=True)]
    counts = [
        min(plan.quota(index, n, full) if n else 0, now)
        for n, full, now in zip(layout.counts, layout.prompt_lengths, standing, strict=True)
    ]
    if counts == standing:
        return Choice(state.kept, (), state.stage.lengths)
    if selector.counts_rows:
        keep = on_device(counts, scores.device)
        counts = selector.counts(_rows(target, index, state).to(scores.device), keep, state.kept).tolist()
    shares = [reducer.share_in(view, now, k) if k < now else (k, 0) for now, k in zip(standing, counts, strict=True)]
    tiled = projects_after(target, view) and view.vision.record.tower.tiled
    if tiled:
        shares = _of_patches(shares, (view.vision.exists & state.kept).sum(1).tolist())
    keep = on_device([selected for selected, _ in shares], scores.device)
    kept = selector.select_in(view, scores.nan_to_num(nan=-torch.inf), keep, state.kept)
    selected = [selected for selected, _ in shares] if selector.exact else kept.sum(1).tolist()
    rest = [now - k for now, k in zip(standing, selected, strict=True)]
    if tiled:  # of newlines nothing can be made
        rest = (view.vision.exists & state.kept & ~kept).sum(1).tolist()
    added = [min(more, n) for (_, more), n in zip(shares, rest, strict=True)]
    lengths = tuple(t + k + more for t, k, more in zip(text, selected, added, strict=True))
    return Choice(kept, tuple(added) if any(added) else (), lengths)


def projects_after(target: Target, view: LayerView) -> bool:
    """Whether the reducer works on what the projector reads."""
    return target.plan.reducer.before_projector and view.site == "input"


def _of_patches(shares: list[tuple[int, int]], patches: list[int]) -> list[tuple[int, int]]:
    """Shares of selected and added tokens where only so many have a patch behind them, to make others of."""
    limits = [min(more, max(0, n - selected)) for (selected, more), n in zip(shares, patches, strict=True)]
    return [(selected + more - m, m) for (selected, more), m in zip(shares, limits, strict=True)]


def _rows(target: Target, index: int, state: Prefill) -> torch.Tensor:
    """Head-mean attention [B, Q, N] of the scorer's queries in the last layer of evidence, zero where nothing is."""
    scorer, view = target.plan.scorer, state.views[target.plan.cuts[index].evidence[-1]]
    assert isinstance(scorer, RowScorer)  # Pruner refuses any other
    rows_BQS = view.attention(scorer.chosen_queries(view)).mean(1)
    return view.visual(rows_BQS.transpose(1, 2)).transpose(1, 2) * state.kept[:, None].to(rows_BQS.device)


def reduce(
    target: Target, state: Prefill, choice: Choice, scores: torch.Tensor, hidden: torch.Tensor, view: LayerView
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Let the reducer change what stays, and add to it: hidden states [B, S, D] with the new tokens in their slots,
    and which are added, bool [B, N] (None if none are)."""
    reducer, device = target.plan.reducer, hidden.device
    before = projects_after(target, view)
    tokens = view.vision.features.to(device) if before else gather_tokens(hidden, state.slots)
    kept, alive, added = choice.kept.to(device), state.kept.to(device), None
    if before:  # what no patch stands behind is not the projector's to make
        exists = view.vision.exists.to(device)
        kept, alive = kept & exists, alive & exists
    sizes = (state.sizes if state.sizes is not None else state.layout.exists.float()).to(device)
    ranked = scores.to(device).nan_to_num(nan=-torch.inf)
    if reducer.changes_tokens:
        tokens, sizes = reducer.reduce_in(view, tokens, sizes, ranked, kept, alive)
    if choice.added:
        count = on_device(choice.added, device)
        tokens, sizes, added = reducer.add_in(view, tokens, sizes, ranked, kept, alive, count)
    state.sizes = sizes
    stays = kept if added is None else kept | added
    if before:
        tokens = _projected(target, tokens, stays, max(choice.lengths))
    # A sample of which nothing goes stays as it is, whatever becomes of the others in its batch.
    written = stays & (state.kept.to(device) & ~stays).any(1, keepdim=True)
    hidden = put_where(hidden, tokens, state.slots.to(device), written)
    return hidden, None if added is None else added.to(state.kept.device)


def _projected(target: Target, tokens: torch.Tensor, stays: torch.Tensor, most: int) -> torch.Tensor:
    """Features [B, N, C] through the projector, at ``stays`` [B, N] alone (at most ``most`` a sample): [B, N, D]."""
    index, valid = ragged_index(stays, min(most, stays.shape[1]))
    assert target.encoder is not None
    projected_BMD = target.encoder.project(gather_tokens(tokens, index))
    return scatter_where(projected_BMD, index, valid, stays.shape[1])


def carry_sources(state: Prefill, kept: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The map of sources [B, N] after a cut that leaves ``kept``, where what goes lives on under ``targets``."""
    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    step = torch.where(kept, own, targets.to(kept.device))
    before = state.cuts[-1].sources if state.cuts else None
    if before is None:
        before = own.masked_fill(~state.kept, -1)
    return torch.where(before < 0, -1, step.gather(1, before.clamp(min=0)))
