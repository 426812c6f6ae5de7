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
    from prunekit.views.layer import LayerView, QuerySet, View


class Component:
    """What all components share: the name they are registered under, and a check against a model."""

    registered_name: ClassVar[str] = ""

    uses_vision: ClassVar[bool] = False
    """Whether it reads ``view.vision``, the encoder's side of the visual tokens. If not, nothing is noted for it."""

    uses_places: ClassVar[bool] = False
    """Whether it reads ``view.places``: which image or video, frame, row and column each token is of."""

    reads_question: ClassVar[bool] = False
    """Whether its answer at the input depends on the words of the prompt. A server that keeps an image's tokens for
    other prompts must know; a component that does not say so is shown no words there."""

    uses_values: ClassVar[bool] = False
    """Whether it reads ``view.values`` (beside ``uses_attention``) or ``view.vision.values`` (beside ``uses_vision``).
    If not, no values are kept."""

    uses_unrotated: ClassVar[bool] = False
    """Whether it reads queries or keys as they were before the rotary embedding, or attention without it (beside
    ``uses_attention``). If not, none are noted."""

    def vision_blocks(self, blocks: int) -> Sequence[int]:
        """Blocks of an encoder of so many ``blocks`` whose keys and attention it reads in ``view.vision``, beside the
        one that the projector reads and the last, which are always there for it."""
        return ()

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

    uses_attention: ClassVar[bool] = False
    """Whether ``score`` reads the layer's attention, queries or keys. If not, none are captured for it."""

    works_without_attention: ClassVar[bool] = False
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

    uses_next_layer: ClassVar[bool] = False
    """Whether ``layers`` may name the cut layer itself: what it would see of the tokens that are about to go. Its norm
    and projections are run for that once more, without the cache, up to its attention function."""

    joins_rows: ClassVar[bool] = True
    """Whether ``fuse_views`` reads the attention rows that the scorer chooses, so that it must be a ``RowScorer``."""

    def layers(self, cut: int, previous: int) -> list[int]:
        """Layers (ascending, all < ``cut``) whose evidence decides the cut before layer ``cut``; where
        ``uses_next_layer``, ``cut`` itself may be among them.

        ``previous`` is the layer of the cut before this one, 0 if there was none.
        """
        raise TypeError(f"{type(self).__name__} defines no layers(cut, previous)")

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Scores [B, N] from the layers' scores [len(layers), B, N]."""
        raise TypeError(f"{type(self).__name__} defines no fuse(evidence, layers)")

    def fuse_views(self, views: Sequence[LayerView], scorer: Scorer) -> torch.Tensor:
        """Scores [B, N] from the layers themselves, in ascending order. A fusion that defines it is asked this, not
        ``fuse``."""
        raise TypeError(f"{type(self).__name__} defines no fuse_views(views, scorer)")

    def macs(self, works: Sequence[LayerWork], scorer: Scorer) -> float:
        """Multiply-accumulates of ``fuse_views``, scorer included, for the cost meter."""
        return 0.0

    @property
    def needs_full_attention(self) -> bool:
        """Whether ``fuse_views`` is defined, which joins whole layers and not their scores."""
        return type(self).fuse_views is not Fusion.fuse_views


@dataclass(frozen=True)
class Cut:
    """One removal: tokens go before ``layers[layer]``, and the share ``ratio`` of the original N stays."""

    layer: int
    ratio: float
    site: str = "decoder"


class Schedule(Component):
    """Where the cuts are and how many tokens stay after each."""

    sites: tuple[str, ...] = ("decoder",)
    """Where it cuts: "vision" (inside the encoder, by ``vision_cuts``), "input" (before decoder layer 0), "decoder"."""

    adapts_counts: ClassVar[bool] = False
    """Whether the counts of its cuts depend on the sample, by ``shares``. Its scorer must read attention, and its first
    cut have evidence."""

    def shares(self, view: LayerView, layers: Sequence[int], depth: int) -> torch.Tensor:
        """How the tokens of each sample fall: the share that stays after the cut before each of ``layers``, never
        rising, up to a factor, float [B, cuts]. The factor is found for each sample so that its tokens, added up over
        the decoder's ``depth`` layers, come nearest to those that ``cuts`` would leave.

        ``view`` is the last layer of evidence of the first cut, in which all tokens stand.
        """
        raise TypeError(f"{type(self).__name__} defines no shares(view, layers, depth)")

    def cuts(self, depth: int, keep_ratio: float) -> tuple[Cut, ...]:
        """The cuts in order for a decoder of ``depth`` layers; the last one's ratio is ``keep_ratio``.

        The layers must not depend on ``keep_ratio``: with ``keep_tokens`` it differs from sample to sample.
        """
        raise TypeError(f"{type(self).__name__} defines no cuts(depth, keep_ratio)")

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[Cut, ...]:
        """The cuts inside a vision encoder of which the first ``blocks`` blocks count, in order.

        ``ratio`` is the share of an image's ``patches`` that stays; ``layer`` the block inside which the others go,
        between its attention and its MLP. Where ``cuts`` has none the last ratio is the keep ratio, or the nearest to
        it that can be reached.
        """
        return ()

    def image_grid(self, grid: tuple[int, int], keep_ratio: float) -> tuple[int, int] | None:
        """Rows and columns of patches to which the image itself is shrunk before an encoder whose images have ``grid``.

        None leaves it as it is. Asked of schedules that cut at site "vision".
        """
        return None

    @property
    def shrinks_images(self) -> bool:
        """Whether ``image_grid`` is defined."""
        return type(self).image_grid is not Schedule.image_grid

    def own_ratio(self) -> float | None:
        """The keep ratio that the schedule's own options imply, None if they leave it open; 0 if it withdraws all."""
        return None

    def earlier(self, depth: int) -> Iterator[Schedule]:
        """Variants with cuts at ever earlier layers, for a budget that needs them; none where layers are fixed."""
        return iter(())


class Selector(Component):
    """Scores to the set that stays."""

    exact: ClassVar[bool] = False
    """Whether always exactly ``quota`` tokens of each sample stay, so that the new length is known without looking."""

    ignores_scores: ClassVar[bool] = False
    """Whether the choice does not depend on the scores."""

    adapts_count: ClassVar[bool] = False
    """Whether ``counts`` is asked first. It gets the attention rows of the last layer of evidence, so that the scorer
    must be a ``RowScorer``."""

    def counts(self, rows: torch.Tensor, quota: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """How many tokens stay of each sample, long [B], where that depends on the evidence (dynamic ratios).

        ``rows`` [B, Q, N] is the head-mean attention from the scorer's queries to the visual tokens, zero where there
        is no query or no token; ``quota`` [B] is what the schedule would leave of ``alive`` [B, N].
        """
        raise TypeError(f"{type(self).__name__} defines no counts(rows, quota, alive)")

    def select(self, view: View, scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
        """Which tokens stay, bool [B, N], a subset of ``view.alive``.

        ``view`` shows the layer that the tokens enter (in an encoder the block that they are in); ``scores`` [B, N] are
        -inf where a token is gone; ``quota`` [B], long, is how many are to stay of each sample.
        """
        raise TypeError(f"{type(self).__name__} defines no select(view, scores, quota)")


@dataclass(frozen=True)
class Reduced:
    """What a reducer makes of a cut. Only what stands where a token stays, kept or added, is used.

    Attributes:
        tokens: [B, N, D].
        sizes: how many original tokens each stands for, [B, N]; None leaves them as they were.
        added: where new tokens stand, bool [B, N], none of them kept: a new token takes the name, and under
            ``positions=keep`` the place, of the token at whose index it is written. None if there are none.
        sources: under which token's name each token that goes lives on, long [B, N], -1 where under none; for the map
            that a trace keeps. None where nothing lives on.
        order: in which order what stays follows each other in an image, long [B, N]: by these numbers, then by place.
            Used where the order is free: inside an encoder, and under ``positions=renumber``. By default what was
            added comes last.
    """

    tokens: torch.Tensor
    sizes: torch.Tensor | None = None
    added: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    order: torch.Tensor | None = None


class Reducer(Component):
    """What becomes of the tokens that do not stay. One that defines no ``reduce`` drops them."""

    acts_before_projector: ClassVar[bool] = False
    """Whether at the input ``tokens`` are what the projector reads, [B, N, C], instead of what it makes of them; what
    stays is projected afterwards. There it may read ``view.vision`` as well."""

    @property
    def proportional_attention(self) -> bool:
        """Whether the logarithm of a token's size is added to its attention logits from then on, in the encoder or the
        decoder, wherever it was merged (ToMe, ICLR 2023, section 3): the option ``proportional`` of reducers that have
        one."""
        return getattr(self, "proportional", False)

    def split(self, view: View, standing: int, keep: int) -> tuple[int, int]:
        """Of a sample with ``standing`` tokens and a budget of ``keep``: how many are selected, how many are added."""
        return keep, 0

    def reduce(
        self,
        *,
        view: View,
        tokens: torch.Tensor,
        sizes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        alive: torch.Tensor,
        count: torch.Tensor,
    ) -> Reduced:
        """What stays, made of what stood. Called by name, so that a reducer takes what it needs and ``**rest``.

        ``tokens`` [B, N, D] are the hidden states that enter the layer, ``sizes`` [B, N] how many original tokens each
        stands for, ``scores`` [B, N] (-inf where gone); of ``alive`` [B, N] those ``kept`` stay, and ``count`` [B]
        tokens are to be added.
        """
        raise TypeError(f"{type(self).__name__} defines no reduce(tokens, sizes, scores, kept, alive, count)")

    @property
    def reduces(self) -> bool:
        """Whether ``reduce`` is defined; if not, what does not stay is dropped."""
        return type(self).reduce is not Reducer.reduce
