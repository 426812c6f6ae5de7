"""What a component may look at in one decoder layer, computed only when touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.tensors.attention import AttentionInputs
from prunekit.tensors.indexing import gather_tokens, ragged_index
from prunekit.tensors.sequences import CompactSequence, PromptLayout
from prunekit.views.media import MediaRecord
from prunekit.views.places import Places
from prunekit.views.vision import VisionView

T = TypeVar("T")
QuerySet = str | torch.Tensor
Box = tuple[float, float, float, float]
Regions = Sequence[Sequence[Box]]
Queries = tuple[torch.Tensor, torch.Tensor]

SHARED = 2**20
"""Entries up to which what a query set may see is kept from layer to layer."""


class View:
    """What the views of a decoder layer and of an encoder block share.

    Attributes:
        site: "vision" (inside the encoder), "input" (before decoder layer 0) or "decoder".
        hidden_states: input of the layer, [B, S, D].
        layer: index of the layer, or of the encoder's block.
        alive: visual tokens still there, bool [B, N].
        slots: where they stand in the sequence, long [B, N], arbitrary where not ``alive``.
        grid: rows and columns of patches of an image, where they are fixed, else None.
        inputs: what the layer gives its attention function; None where it was not captured.
        notes: what ``once`` has made, by name.
    """

    site: str
    hidden_states: torch.Tensor
    layer: int
    alive: torch.Tensor
    slots: torch.Tensor
    grid: tuple[int, int] | None
    inputs: AttentionInputs | None
    notes: dict[str, Any]

    def visual(self, x: torch.Tensor) -> torch.Tensor:
        """Gather the visual tokens of x [B, S, ...]: [B, N, ...], arbitrary where not ``alive``."""
        return gather_tokens(x, self.slots)

    @property
    def queries(self) -> torch.Tensor:
        """Queries [B, H, S, d] after the rotary embedding."""
        return self._attention().queries

    @property
    def keys(self) -> torch.Tensor:
        """Keys [B, H_kv, S, d] after the rotary embedding."""
        return self._attention().keys

    @property
    def values(self) -> torch.Tensor:
        """Values [B, H_kv, S, d] (components with ``uses_values``)."""
        if (values := self._attention().values) is None:
            raise PrunekitError(
                f"layer {self.layer}: values were not captured; a component that reads them must set the class "
                "attribute uses_values = True, and timm's encoders do not show theirs"
            )
        return values

    @property
    def queries_unrotated(self) -> torch.Tensor:
        """Queries [B, H, S, d] before the rotary embedding (components with ``uses_unrotated``); in a layer without one
        those that it attends with."""
        return self._unrotated().queries

    @property
    def keys_unrotated(self) -> torch.Tensor:
        """Keys [B, H_kv, S, d] before the rotary embedding, likewise."""
        return self._unrotated().keys

    @property
    def rotary_angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [B, S, r] by which the rotary embedding turns the r first entries of queries and keys
        (components with ``uses_unrotated``).

        Raises:
            PrunekitError: where the layer is not given them in this shape.
        """
        if (angles := self._attention().angles) is None:
            raise PrunekitError(f"layer {self.layer}: the angles of its rotary embedding are not known")
        return angles

    def query_index(self, queries: QuerySet) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots [B, Q] of a query set and which of them exist [B, Q] (samples may have fewer than Q).

        Raises:
            PrunekitError: for a name that stands for no query set (``UnknownNameError``).
        """
        raise NotImplementedError

    def attention(self, queries: QuerySet, *, rotary: bool = True, heads: Sequence[int] | None = None) -> torch.Tensor:
        """Post-softmax attention rows [B, H, Q, S] of a query set, float32; zero rows where a sample has fewer.

        Args:
            rotary: False gives the rows as they would be without the rotary embedding (``uses_unrotated``).
            heads: only these query heads, in this order: nothing is computed for the others.

        Raises:
            PrunekitError: for a head that the layer does not have.
        """
        index_BQ, valid_BQ = self.query_index(queries)
        inputs = self._attention() if rotary else self._unrotated()
        rows_BHQS = (inputs if heads is None else inputs.of_heads(heads)).rows(index_BQ)
        return rows_BHQS * valid_BQ[:, None, :, None].to(rows_BHQS.device)

    def mean_attention(self, queries: QuerySet) -> torch.Tensor:
        """The head mean of ``attention``, [B, Q, S], without holding the rows of all heads at a time."""
        index_BQ, valid_BQ = self.query_index(queries)
        inputs, step = self._attention(), self._attention().block_rows
        parts = [inputs.rows(index_BQ[:, start : start + step]).mean(1) for start in range(0, index_BQ.shape[1], step)]
        rows_BQS = torch.cat(parts, dim=1)
        return rows_BQS * valid_BQ[..., None].to(rows_BQS.device)

    def attention_blocks(self, queries: QuerySet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rows of ``attention`` [B, H, q, S] and of ``visible`` [B, q, S], a block of queries at a time: for
        scorers that sum over queries, whose memory then does not grow with how many there are. Where a sample has fewer
        queries its rows are arbitrary and see nothing."""
        inputs, (index_BQ, valid_BQ) = self._attention(), self._block_queries(queries)
        for start in range(0, index_BQ.shape[1], inputs.block_rows):
            block = slice(start, start + inputs.block_rows)
            whole = index_BQ.shape[1] <= inputs.block_rows
            visible_BQS = self._visible(queries if whole else None, index_BQ[:, block], valid_BQ[:, block])
            yield inputs.rows(index_BQ[:, block], visible_BQS), visible_BQS

    def _block_queries(self, queries: QuerySet) -> Queries:
        """``query_index`` of a query set whose rows are summed over."""
        return self.query_index(queries)

    def _visible(self, queries: QuerySet | None, index_BQ: torch.Tensor, valid_BQ: torch.Tensor) -> torch.Tensor:
        """What the queries at ``index`` [B, q] may attend to, bool [B, q, S]; ``queries`` names them if they are all of
        a query set."""
        visible_BQS = self._attention().visible(index_BQ)
        return visible_BQS & valid_BQ[..., None].to(visible_BQS.device)

    def visible(self, queries: QuerySet) -> torch.Tensor:
        """Which slots each query may attend to, bool [B, Q, S]; False rows where a sample has fewer queries."""
        return self._visible(None, *self.query_index(queries))

    def one_hot(self, queries: QuerySet) -> torch.Tensor:
        """The rows of the identity that belong to a query set, float32 [B, Q, S]."""
        index_BQ, valid_BQ = self.query_index(queries)
        return torch.nn.functional.one_hot(index_BQ, self.hidden_states.shape[1]).float() * valid_BQ[..., None]

    def propagate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [B, Q, S] times this layer's head-mean attention matrix, float32 [B, Q, S], on the layer's device."""
        return self._attention().propagate(rows.to(self._attention().keys.device))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """``make()``, called once for each ``name``: in a prefill, for what does not depend on the layer; in an encoder
        once a block."""
        if name not in self.notes:
            self.notes[name] = make()
        return self.notes[name]

    def _unrotated(self) -> AttentionInputs:
        if (inputs := self._attention()).unrotated is None:
            raise PrunekitError(
                f"layer {self.layer}: queries and keys before the rotary embedding were not noted; a component that "
                "reads them must set the class attribute uses_unrotated = True"
            )
        return inputs.without_rotary()

    def _attention(self) -> AttentionInputs:
        if self.inputs is None:
            raise PrunekitError(
                f"layer {self.layer}: attention was not captured; a scorer that reads attention, queries or keys "
                "must set the class attribute uses_attention = True"
            )
        return self.inputs


@dataclass(frozen=True)
class PrefillContext:
    """What a prefill knows beyond its layers.

    Attributes:
        inputs_embeds: what entered layer 0, [B, S_dense, D].
        regions: where the answer of each sample is, if the caller said so.
        vision: the encoder's side of the visual tokens, where a component reads it.
        media: the images and videos, where a component reads their places.
    """

    inputs_embeds: torch.Tensor | None = None
    regions: Regions | None = None
    vision: VisionView | None = None
    media: MediaRecord | None = None


@dataclass
class LayerView(View):
    """One decoder layer of one prefill, as a scorer sees it.

    B samples, S slots of the sequence that this layer processes (already without what earlier cuts removed), N visual
    tokens of the dense sequence. Tokens that are gone, or pad a shorter sample, are False in ``alive`` [B, N]; what a
    scorer returns for them is ignored.

    Attributes:
        hidden_states: input of the layer, [B, S, D].
        layer: index of the layer.
        alive: visual tokens still there, bool [B, N].
        grid: rows and columns of patches of an image, where the family has a fixed grid, else None.
    """

    hidden_states: torch.Tensor
    layer: int
    layout: PromptLayout
    sequence: CompactSequence
    alive: torch.Tensor
    slots: torch.Tensor
    grid: tuple[int, int] | None = None
    inputs: AttentionInputs | None = field(default=None, repr=False)
    context: PrefillContext = field(default_factory=PrefillContext, repr=False)
    site: str = "decoder"
    notes: dict[str, Any] = field(default_factory=dict, repr=False)

    def in_layer(self, dense: torch.Tensor) -> torch.Tensor:
        """A per-token tensor of the dense sequence [B, S_dense] as this layer's sequence [B, S] has it, on the layer's
        device."""
        compact_BS = dense if self.sequence.index is None else dense.gather(1, self.sequence.index)
        return compact_BS.to(self.hidden_states.device)

    @property
    def real(self) -> torch.Tensor:
        """Slots in use, bool [B, S]."""
        real_BS = self.in_layer(self.layout.real)
        return real_BS if self.sequence.valid is None else real_BS & self.sequence.valid.to(real_BS.device)

    @property
    def asked(self) -> torch.Tensor:
        """Slots in use that a scorer may look at, bool [B, S]: the prompt, and not an answer behind it."""
        self.layout.check_prompt()
        return self.real & self.in_layer(self.layout.prompt)

    @property
    def visual_mask(self) -> torch.Tensor:
        """Slots that hold a visual token, bool [B, S]."""
        return self.in_layer(self.layout.visual) & self.real

    @property
    def text_mask(self) -> torch.Tensor:
        """Slots of the instruction, bool [B, S]: real, not visual, after the sample's first visual token."""
        return self.in_layer(self.layout.text) & self.real

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids [B, S]. Raises for a prompt that was given as embeddings."""
        if self.layout.input_ids is None:
            raise PrunekitError("input_ids: the prompt was given as inputs_embeds, its token ids are not known")
        return self.in_layer(self.layout.input_ids)

    def query_index(self, queries: QuerySet) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots [B, Q] of a query set and which of them exist [B, Q] (samples may have fewer than Q).

        ``queries`` is "text" (the instruction), "last" (the last real token), "visual", "all", or a bool mask [B, S].

        Raises:
            PrunekitError: for a name that stands for no query set (``UnknownNameError``).
        """
        if isinstance(queries, torch.Tensor):
            return ragged_index(queries & self.asked, int(queries.sum(1).max()))
        if queries == "visual":
            return self.slots, self.alive
        if queries == "text":
            return ragged_index(self.text_mask, max(self.layout.text_counts))
        if queries == "all":
            return ragged_index(self.asked, max(self.sequence.lengths))
        if queries == "last":
            prompt_BS = self.asked
            number_S = torch.arange(1, prompt_BS.shape[1] + 1, device=prompt_BS.device)
            last_B1 = (prompt_BS * number_S).argmax(1, keepdim=True)
            return last_B1, torch.ones_like(last_B1, dtype=torch.bool)
        raise UnknownNameError("queries", queries, ("text", "last", "visual", "all"))

    def _block_queries(self, queries: QuerySet) -> Queries:
        """Made once for all layers of a sequence; of visual queries only those that still stand."""
        if isinstance(queries, torch.Tensor):
            return self.query_index(queries)
        find = self._standing if queries == "visual" else lambda: self.query_index(queries)
        return self.once(f"queries {queries} of sequence {self.sequence.number}", find)

    def _visible(self, queries: QuerySet | None, index_BQ: torch.Tensor, valid_BQ: torch.Tensor) -> torch.Tensor:
        """For a short query set made once for the layers of a sequence that share their mask."""
        inputs = self._attention()
        if not isinstance(queries, str) or index_BQ.numel() * inputs.keys.shape[2] > SHARED:
            return super()._visible(queries, index_BQ, valid_BQ)
        which = f"{self.sequence.number} {id(inputs.mask)} {inputs.window} {inputs.keys.shape[2]}"
        # The mask is kept beside it, so that its id stays its own.
        find = lambda: (inputs.mask, super(LayerView, self)._visible(queries, index_BQ, valid_BQ))  # noqa: E731
        return self.once(f"seen by {queries} under {which}", find)[1].to(inputs.keys.device)

    def _standing(self) -> Queries:
        """Slots of the visual tokens that still stand, and which exist: what ``query_index`` gives without the gaps."""
        gone = zip(self.layout.lengths, self.layout.counts, self.sequence.lengths, strict=True)
        counts = [now - (whole - visual) for whole, visual, now in gone]
        return ragged_index(self.visual_mask, max(counts))

    @property
    def inputs_embeds(self) -> torch.Tensor:
        """What entered layer 0, of the dense sequence: [B, S_dense, D]; ``layout`` says where its tokens stand."""
        assert self.context.inputs_embeds is not None
        return self.context.inputs_embeds

    @property
    def regions(self) -> Regions:
        """Where the answer of each sample is: boxes (x0, y0, x1, y1), fractions of its image's width and height.

        Known only if the caller told the pruner (``pruner(model, regions=...)``); raises otherwise.
        """
        if self.context.regions is None:
            raise PrunekitError("regions: nothing says where the answers are; this data does not know it")
        return self.context.regions

    @property
    def places(self) -> Places:
        """Which image or video, frame, row and column each visual token is of (components with ``uses_places``).

        Raises:
            PrunekitError: where the model's inputs do not say it, or no component has asked for it.
        """
        media = self.context.media
        if media is None:
            raise PrunekitError(
                "view.places was not noted; a component that reads it must set the class attribute uses_places = True"
            )
        return self.once("places", lambda: media.places(self.layout)).to(self.hidden_states.device)

    @property
    def vision(self) -> VisionView:
        """The encoder's side of the visual tokens: patch features, keys, CLS attention (components with
        ``uses_vision``).

        Raises:
            PrunekitError: where no component has asked for it.
        """
        if self.context.vision is None:
            raise PrunekitError(
                "view.vision was not noted; a component that reads it must set the class attribute uses_vision = True"
            )
        return self.context.vision
