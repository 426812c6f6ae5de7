"""FrameFusion: tokens that look like the same place one frame before are merged, then the least attended ones go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

LAYERS = 3
"""Merging takes place before layers 0 to 2 at most; before layer 3 at the latest the budget is met."""


@prunekit.register("schedule", "framefusion")
@dataclass
class Shallow(prunekit.Schedule):
    """A cut before each of the first layers; how many tokens go at which of them depends on the sample."""

    sites = ("input", "decoder")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        if depth <= LAYERS:
            raise prunekit.PrunekitError(f"schedule 'framefusion' cuts up to layer {LAYERS}; the decoder has {depth}")
        later = [prunekit.Cut(layer, keep_ratio) for layer in range(1, LAYERS + 1)]
        return (prunekit.Cut(0, keep_ratio, "input"), *later)


@dataclass
class Progress:
    """Which samples of a prefill still merge, and which have met their budget: bool [B] each."""

    merging: torch.Tensor
    done: torch.Tensor

    @classmethod
    def of(cls, view) -> Progress:
        """That of the prefill that the view belongs to."""
        none = torch.zeros(len(view.alive), dtype=torch.bool, device=view.alive.device)
        return view.once("progress of framefusion", lambda: cls(~none, none))


@prunekit.register("scorer", "framefusion")
@dataclass
class Received(prunekit.RowScorer):
    """The attention that a token receives, summed over all queries and heads: earlier tokens are seen by more. It is
    computed in the layer behind the last merging alone."""

    works_without_attention = True

    @property
    def query_set(self) -> str:
        return "all"

    def score(self, view) -> torch.Tensor:
        progress, total = Progress.of(view), torch.zeros(view.hidden_states.shape[:2], device=view.hidden_states.device)
        if view.inputs is not None and bool((~progress.merging & ~progress.done).any()):
            for rows, seen in view.attention_blocks("all"):
                total = total + (rows.mean(1) * seen).sum(1)
        return view.visual(total)


@prunekit.register("selector", "framefusion")
@dataclass
class FrameFusion(prunekit.Selector):
    """FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models
    (ICCV 2025, https://arxiv.org/abs/2501.01986, section 4).

    Before each of the first layers every token with a cosine of at least ``similarity`` to the token at its place one
    frame before (of those that still stand) merges into it. Merging ends where less than the share ``least`` merges, or
    where the budget is met, which takes the most similar. Then the least attended tokens go, in one cut.

    Args:
        similarity: 0.6 in the authors' code.
        least: 0.1 there.
    """

    similarity: float = 0.6
    least: float = 0.1

    uses_places = True

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.similarity", self.similarity, "[-1, 1]")
        prunekit.check_interval("selector.least", self.least, "[0, 1]")

    def select(self, view, scores, quota) -> torch.Tensor:
        progress, standing = Progress.of(view), view.alive.sum(1)
        before = previous(view.places, view.alive)
        tokens = view.visual(view.hidden_states).float()
        alike = torch.cosine_similarity(tokens, prunekit.ops.gather_tokens(tokens, before.clamp(min=0)), dim=-1)
        alike = alike.masked_fill(before < 0, -torch.inf)
        merging = progress.merging & (view.layer < LAYERS)
        merges = view.alive & (alike >= self.similarity) & merging[:, None]
        enough = merges.sum(1) >= standing - quota
        most = torch.where(enough, standing - quota, merges.sum(1))
        merges = prunekit.ops.top_k(alike, most, merges)
        progress.merging = merging & ~enough & (most >= self.least * standing)
        prunes = ~merging & ~progress.done
        progress.done = progress.done | (merging & enough) | prunes
        best = prunekit.ops.top_k(scores, quota, view.alive)
        view.once(f"heads of the cut {view.layer}", lambda: heads(before, merges))
        return torch.where(prunes[:, None], best, view.alive & ~merges)


def previous(places, alive: torch.Tensor) -> torch.Tensor:
    """For each token of ``alive`` [B, N] the last one before it in time that stands at its place, long, -1 if none."""
    exists = places.exists & alive
    columns, rows = int(places.columns.max()) + 1, int(places.rows.max()) + 1
    place = (places.medium * rows + places.row) * columns + places.column
    frames = int(places.frames.max()) + 1
    key = torch.where(exists, place * frames + places.frame, torch.iinfo(torch.long).max)
    order = key.argsort(dim=1, stable=True)
    place, there = place.gather(1, order), exists.gather(1, order)
    follows = (place[:, 1:] == place[:, :-1]) & there[:, 1:]
    before = torch.full_like(order, -1)
    return before.scatter(1, order[:, 1:], torch.where(follows, order[:, :-1], -1))


def heads(before: torch.Tensor, merges: torch.Tensor) -> torch.Tensor:
    """The token into which each of ``merges`` [B, N] goes, back in time to the first that does not; -1 elsewhere."""
    target = torch.where(merges, before, torch.arange(before.shape[1], device=before.device))
    while bool((merges.gather(1, target)).any()):
        target = target.gather(1, target)
    return torch.where(merges, target, -1)


@prunekit.register("reducer", "framefusion")
@dataclass
class RunMeans(prunekit.Reducer):
    """A token and those that merge into it, frame after frame, become their mean; what is not attended goes."""

    def reduce(self, *, view, tokens, sizes, kept, alive, **rest) -> prunekit.Reduced:
        target = view.once(f"heads of the cut {view.layer}", lambda: torch.full_like(kept, -1, dtype=torch.long))
        joins = (target >= 0) & alive & ~kept
        sums, came = prunekit.ops.sum_into(tokens, joins.to(tokens.dtype), target.clamp(min=0))
        moved = torch.zeros_like(sizes).scatter_add(1, target.clamp(min=0), sizes * joins)
        means = (tokens + sums) / (1 + came)[..., None]
        return prunekit.Reduced(torch.where(kept[..., None], means, tokens), sizes + moved, sources=target)


prunekit.compose(
    "framefusion",
    scorer="framefusion",
    fusion="single",
    schedule="framefusion",
    selector="framefusion",
    reducer="framefusion",
    keep_ratio=0.3,
)
