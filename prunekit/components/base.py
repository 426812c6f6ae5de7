"""The seams of a pruning method: what a Scorer, Fusion, Schedule, Selector and Reducer must answer.

All are dataclasses whose fields are their options, and pure functions of tensors: nothing of a forward pass is kept
on them. Shapes: B samples, S tokens of the layer's sequence, N visual tokens (the largest count in the batch,
shorter samples padded), H heads, Q query rows, D hidden width. Everywhere a higher score means "keep".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from prunekit.engine.view import LayerView, QuerySet, View


class Component:
    """What all components share: the name they are registered under, and a check against a model."""

    registered_name: ClassVar[str] = ""

    def check(self, depth: int) -> None:
        """Raise ``PrunekitError`` if this component cannot work on a decoder of ``depth`` layers."""

    def save_weights(self, path: Path) -> bool:
        """Write what training has made of this component as safetensors, for its option ``weights``; whether there was
        anything to write."""
        return False


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
        """How many queries a set has ("text", "last", "cls", "visual" or "all"); without an instruction one."""
        return {"text": max(self.text, 1), "last": 1, "cls": 1, "visual": self.visual, "all": self.tokens}[query_set]

    def row_macs(self, queries: int) -> float:
        """Multiply-accumulates of the attention rows of so many queries: their logits."""
        return float(queries * self.tokens * self.heads * self.head_dim)


class Scorer(Component):
    """One number a visual token.

    ``score`` is called with a ``LayerView`` of a decoder layer, or, where tokens go inside the vision encoder, with an
    ``EncoderView`` of one of its blocks, in which samples are images and visual tokens their patches; ``view.site``
    tells which.
    """

    sites: ClassVar[tuple[str, ...]] = ("input", "decoder")
    """Where it can work: "vision" (inside the encoder), "input" (before decoder layer 0), "decoder"."""

    uses_vision: ClassVar[bool] = False
    """Whether it reads ``view.vision``, the encoder's side of the visual tokens. If not, nothing is noted for it."""

    uses_attention: ClassVar[bool] = False
    """Whether ``score`` reads the layer's attention, queries or keys. If not, none are captured for it."""

    works_blind: ClassVar[bool] = False
    """Whether ``score`` has an answer without attention too (``view.inputs`` is None): a cut before layer 0."""

    draws: ClassVar[bool] = False
    """Whether scores are drawn at random by an option ``seed``, so that tables average over seeds."""

    uses_regions: ClassVar[bool] = False
    """Whether ``score`` reads ``view.regions``: where the answers are. The caller must know and tell the pruner."""

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

    def chosen_queries(self, view: LayerView) -> QuerySet:
        """The queries of one layer: ``query_set``, or a bool mask [B, S] for a scorer that chooses them by content."""
        return self.query_set

    def score_rows(self, rows: torch.Tensor, view: LayerView) -> torch.Tensor:
        """Scores [B, N] from the rows [B, H, Q, S] of ``chosen_queries``."""
        raise TypeError(f"{type(self).__name__} defines no score_rows(rows, view)")

    def score(self, view: LayerView) -> torch.Tensor:
        return self.score_rows(view.attention(self.chosen_queries(view)), view)

    def macs(self, work: LayerWork) -> float:
        return work.row_macs(work.queries(self.counted_queries))

    @property
    def counted_queries(self) -> str:
        """The query set that the cost meter counts: for queries chosen by content the instruction, their most."""
        return "text" if type(self).query_set is RowScorer.query_set else self.query_set


class Fusion(Component):
    """Joins a scorer's evidence over layers."""

    joins_views: ClassVar[bool] = False
    """Whether ``fuse_views`` is called, on whole layers, instead of ``fuse`` on their scores."""

    looks_ahead: ClassVar[bool] = False
    """Whether ``layers`` may name the cut layer itself: what it would see of the tokens that are about to go. Its norm
    and projections are run for that once more, without the cache, up to its attention function."""

    def layers(self, cut: int, previous: int) -> list[int]:
        """Layers (ascending, all < ``cut``) whose evidence decides the cut before layer ``cut``; where ``looks_ahead``,
        ``cut`` itself may be among them.

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

    in_encoder: bool = False
    """Whether ``vision_cuts`` is asked as well, and needs an answer."""

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[Cut, ...]:
        """The cuts inside a vision encoder of which the first ``blocks`` blocks count, in order.

        ``ratio`` is the share of an image's ``patches`` that stays; ``layer`` the block inside which the others go,
        between its attention and its MLP. Where ``cuts`` has none the last ratio is the keep ratio, or the nearest to
        it that can be reached.
        """
        return ()

    def image_grid(self, grid: tuple[int, int], keep_ratio: float) -> tuple[int, int] | None:
        """Rows and columns of patches to which the image itself is shrunk before an encoder whose images have ``grid``.

        None leaves it as it is. Asked of schedules that are ``in_encoder``.
        """
        return None

    def own_ratio(self) -> float | None:
        """The keep ratio that the schedule's own options imply, None if they leave it open."""
        return None

    def earlier(self, depth: int) -> Iterator[Schedule]:
        """Variants with cuts at ever earlier layers, for a budget that needs them; none where layers are fixed."""
        return iter(())


class Selector(Component):
    """Scores to the set that stays."""

    uses_vision: ClassVar[bool] = False
    """Whether ``select_in`` reads ``view.vision``."""

    exact: ClassVar[bool] = False
    """Whether always exactly ``keep`` tokens of each sample stay, so that the new length is known without looking."""

    ignores_scores: ClassVar[bool] = False
    """Whether the choice does not depend on the scores."""

    counts_rows: ClassVar[bool] = False
    """Whether ``counts`` is asked first. It gets the attention rows of the last layer of evidence, so that the scorer
    must be a ``RowScorer``."""

    def counts(self, rows: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """How many tokens stay of each sample, long [B], where that depends on the evidence (dynamic ratios).

        ``rows`` [B, Q, N] is the head-mean attention from the scorer's queries to the visual tokens, zero where there
        is no query or no token; ``keep`` [B] is what the schedule would leave of ``alive`` [B, N].
        """
        raise TypeError(f"{type(self).__name__} defines no counts(rows, keep, alive)")

    def select(self, scores: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Bool [B, N], a subset of ``alive`` [B, N], from ``scores`` [B, N] and the counts ``keep`` [B]."""
        raise TypeError(f"{type(self).__name__} defines no select(scores, keep, alive)")

    def select_in(self, view: View, scores: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """The same for a selector that looks at more than scores: ``view`` shows the layer that the tokens enter (in an
        encoder the block that they are in). This is what is called."""
        return self.select(scores, keep, alive)


class Reducer(Component):
    """What becomes of the tokens that do not stay."""

    changes_tokens: ClassVar[bool] = False
    """Whether ``reduce`` is to be called at all; if not, the rest is dropped."""

    uses_vision: ClassVar[bool] = False
    """Whether it reads ``view.vision``."""

    before_projector: ClassVar[bool] = False
    """Whether at the input ``tokens`` are what the projector reads, [B, N, C], instead of what it makes of them; what
    stays is projected afterwards. There it may read ``view.vision`` as well."""

    weighs_attention: bool = False
    """Whether inside an encoder the logarithm of a token's size is added to its attention logits from then on."""

    def reduce(
        self, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens [B, N, D] and sizes [B, N]; only what stands at ``kept`` is used.

        ``tokens`` are the hidden states entering the cut layer and ``sizes`` how many original tokens each stands for.
        """
        raise TypeError(f"{type(self).__name__} defines no reduce(tokens, sizes, kept, alive)")

    adds_tokens: ClassVar[bool] = False
    """Whether ``add`` is called, to make further tokens of those that go."""

    def share(self, standing: int, keep: int) -> tuple[int, int]:
        """Of a sample with ``standing`` tokens and a budget of ``keep``: how many are selected, how many are added."""
        return keep, 0

    def add(
        self,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        count: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """New tokens, sizes, and ``added`` (bool [B, N], ``count`` [B] each, none of them kept): where new ones stand.

        A new token takes the name, and under ``positions=keep`` the place, of the token at whose index it is written;
        under ``positions=renumber`` it moves behind the kept tokens of its image. The rest as in ``reduce``.
        """
        raise TypeError(f"{type(self).__name__} defines no add(tokens, sizes, scores, kept, alive, count)")

    def share_in(self, view: View, standing: int, keep: int) -> tuple[int, int]:
        """``share`` with the view of the cut (see ``Selector.select_in``); this is what is called."""
        return self.share(standing, keep)

    def reduce_in(
        self,
        view: View,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``reduce`` with the view of the cut and the scores; this is what is called."""
        return self.reduce(tokens, sizes, kept, alive)

    def add_in(
        self,
        view: View,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        count: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``add`` with the view of the cut; this is what is called."""
        return self.add(tokens, sizes, scores, kept, alive, count)

    def targets_in(
        self, view: View, scores: torch.Tensor, kept: torch.Tensor, added: torch.Tensor, alive: torch.Tensor
    ) -> torch.Tensor | None:
        """Under which token's name each token that goes lives on, long [B, N], -1 where under none; None if none do.

        For the map of sources that a trace keeps; what stands at ``kept`` or ``added`` is ignored.
        """
        return None

    def ranks_in(self, view: View, scores: torch.Tensor, kept: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """In which order what stays follows each other in an image, long [B, N]: by rank, then by place.

        By default what was ``added`` comes last. Used where the order is free: inside an encoder, and under
        ``positions=renumber``.
        """
        return added.long()
