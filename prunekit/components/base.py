"""The seams of a pruning method: what a Scorer, Fusion, Schedule, Selector and Reducer must answer.

All are dataclasses whose fields are their options, and pure functions of tensors: nothing of a forward pass is kept
on them. Shapes: B samples, S tokens of the layer's sequence, N visual tokens (the largest count in the batch,
shorter samples padded), H heads, Q query rows, D hidden width. Everywhere a higher score means "keep".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from prunekit.engine.view import LayerView


class Component:
    """What all components share: the name they are registered under, and a check against a model."""

    registered_name: ClassVar[str] = ""

    def check(self, depth: int) -> None:
        """Raise ``PrunekitError`` if this component cannot work on a decoder of ``depth`` layers."""


@dataclass(frozen=True)
class LayerWork:
    """One layer of one sample as the cost of a scorer sees it.

    Attributes:
        tokens, visual: tokens of the layer's sequence, and the visual ones among them.
        text: tokens of the instruction.
        heads, head_dim: of the layer's queries.
    """

    tokens: int
    visual: int
    text: int
    heads: int
    head_dim: int

    def queries(self, query_set: str) -> int:
        """How many queries a set has ("text", "last", "visual" or "all"); without an instruction the last token."""
        return {"text": max(self.text, 1), "last": 1, "visual": self.visual, "all": self.tokens}[query_set]

    def row_macs(self, queries: int) -> float:
        """Multiply-accumulates of the attention rows of so many queries: their logits."""
        return float(queries * self.tokens * self.heads * self.head_dim)


class Scorer(Component):
    """One number a visual token."""

    uses_attention: ClassVar[bool] = False
    """Whether ``score`` reads the layer's attention, queries or keys. If not, none are captured for it."""

    def score(self, view: LayerView) -> torch.Tensor:
        """Scores [B, N] from one layer, called for each layer that the fusion asks for."""
        raise TypeError(f"{type(self).__name__} defines no score(view)")

    def macs(self, work: LayerWork) -> float:
        """Multiply-accumulates of one ``score``, for the cost meter; scorers without matrix products cost nothing."""
        return 0.0


class RowScorer(Scorer):
    """A scorer that reads attention rows of some queries; these alone can be joined by rollout."""

    uses_attention: ClassVar[bool] = True

    @property
    def query_set(self) -> str:
        """Which queries' rows it reads: "text", "last", "visual" or "all"."""
        raise TypeError(f"{type(self).__name__} defines no query_set")

    def score_rows(self, rows: torch.Tensor, view: LayerView) -> torch.Tensor:
        """Scores [B, N] from the rows [B, H, Q, S] of ``query_set``."""
        raise TypeError(f"{type(self).__name__} defines no score_rows(rows, view)")

    def score(self, view: LayerView) -> torch.Tensor:
        return self.score_rows(view.attention(self.query_set), view)

    def macs(self, work: LayerWork) -> float:
        return work.row_macs(work.queries(self.query_set))


class Fusion(Component):
    """Joins a scorer's evidence over layers."""

    joins_views: ClassVar[bool] = False
    """Whether ``fuse_views`` is called, on whole layers, instead of ``fuse`` on their scores."""

    def layers(self, cut: int, previous: int) -> list[int]:
        """Layers (ascending, all < ``cut``) whose evidence decides the cut before layer ``cut``.

        ``previous`` is the layer of the cut before this one, 0 if there was none.
        """
        raise TypeError(f"{type(self).__name__} defines no layers(cut, previous)")

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Scores [B, N] from the layers' scores [len(layers), B, N]."""
        raise TypeError(f"{type(self).__name__} defines no fuse(evidence, layers)")

    def fuse_views(self, views: Sequence[LayerView], scorer: Scorer) -> torch.Tensor:
        """Scores [B, N] from the layers themselves, in ascending order (only if ``joins_views``)."""
        raise TypeError(f"{type(self).__name__} defines no fuse_views(views, scorer)")

    def macs(self, works: Sequence[LayerWork], scorer: Scorer) -> float:
        """Multiply-accumulates of ``fuse_views``, scorer included, for the cost meter (only if ``joins_views``)."""
        return 0.0


@dataclass(frozen=True)
class Cut:
    """One removal: tokens go before ``layers[layer]``, and the share ``ratio`` of the original N stays."""

    layer: int
    ratio: float
    site: str = "decoder"


class Schedule(Component):
    """Where the cuts are and how many tokens stay after each."""

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        """The cuts in order for a decoder of ``depth`` layers; the last one's ratio is ``keep_ratio``.

        The layers must not depend on ``keep_ratio``: with ``keep_tokens`` it differs from sample to sample.
        """
        raise TypeError(f"{type(self).__name__} defines no cuts(depth, keep_ratio)")

    def own_ratio(self) -> float | None:
        """The keep ratio that the schedule's own options imply, None if they leave it open."""
        return None

    def earlier(self, depth: int) -> Iterator[Schedule]:
        """Variants with cuts at ever earlier layers, for a budget that needs them; none where layers are fixed."""
        return iter(())


class Selector(Component):
    """Scores to the set that stays."""

    exact: ClassVar[bool] = False
    """Whether always exactly ``keep`` tokens of each sample stay, so that the new length is known without looking."""

    def select(self, scores: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Bool [B, N], a subset of ``alive`` [B, N], from ``scores`` [B, N] and the counts ``keep`` [B]."""
        raise TypeError(f"{type(self).__name__} defines no select(scores, keep, alive)")


class Reducer(Component):
    """What becomes of the tokens that do not stay."""

    changes_tokens: ClassVar[bool] = False
    """Whether ``reduce`` is to be called at all; if not, the rest is dropped."""

    def reduce(
        self, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens [B, N, D] and sizes [B, N]; only what stands at ``kept`` is used.

        ``tokens`` are the hidden states entering the cut layer and ``sizes`` how many original tokens each stands for.
        """
        raise TypeError(f"{type(self).__name__} defines no reduce(tokens, sizes, kept, alive)")
