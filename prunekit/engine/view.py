"""What a scorer may look at in one decoder layer, computed only when touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.engine.layout import Layout, Stage, ragged_index, take
from prunekit.engine.rows import AttentionInputs
from prunekit.errors import PrunekitError, UnknownNameError

QuerySet = str | torch.Tensor

SHARED = 2**20
"""Entries up to which what a query set may see is kept from layer to layer."""


@dataclass
class LayerView:
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
    layout: Layout
    stage: Stage
    alive: torch.Tensor
    slots: torch.Tensor
    grid: tuple[int, int] | None = None
    inputs: AttentionInputs | None = field(default=None, repr=False)
    memo: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def visual(self, x: torch.Tensor) -> torch.Tensor:
        """Gather the visual tokens of x [B, S, ...]: [B, N, ...], arbitrary where not ``alive``."""
        return take(x, self.slots)

    def in_stage(self, dense: torch.Tensor) -> torch.Tensor:
        """A per-token tensor of the dense sequence [B, S_dense] as this layer's sequence [B, S] has it."""
        return dense if self.stage.index is None else dense.gather(1, self.stage.index)

    @property
    def real(self) -> torch.Tensor:
        """Slots in use, bool [B, S]."""
        real = self.in_stage(self.layout.real)
        return real if self.stage.valid is None else real & self.stage.valid

    @property
    def visual_mask(self) -> torch.Tensor:
        """Slots that hold a visual token, bool [B, S]."""
        return self.in_stage(self.layout.visual) & self.real

    @property
    def text_mask(self) -> torch.Tensor:
        """Slots of the instruction, bool [B, S]: real, not visual, after the sample's first visual token."""
        return self.in_stage(self.layout.text) & self.real

    @property
    def input_ids(self) -> torch.Tensor:
        """Token ids [B, S]."""
        return self.in_stage(self.layout.input_ids)

    @property
    def queries(self) -> torch.Tensor:
        """Queries [B, H, S, d] after the rotary embedding (scorers with ``uses_attention``)."""
        return self._attention().queries

    @property
    def keys(self) -> torch.Tensor:
        """Keys [B, H_kv, S, d] after the rotary embedding (scorers with ``uses_attention``)."""
        return self._attention().keys

    def query_index(self, queries: QuerySet) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots [B, Q] of a query set and which of them exist [B, Q] (samples may have fewer than Q).

        ``queries`` is "text" (the instruction), "last" (the last real token), "visual", "all", or a bool mask [B, S].
        """
        if isinstance(queries, torch.Tensor):
            return ragged_index(queries & self.real, int(queries.sum(1).max()))
        if queries == "visual":
            return self.slots, self.alive
        if queries == "text":
            return ragged_index(self.text_mask, max(self.layout.text_counts))
        if queries == "all":
            return ragged_index(self.real, max(self.stage.lengths))
        if queries == "last":
            real = self.real
            last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1, keepdim=True)
            return last, torch.ones_like(last, dtype=torch.bool)
        raise UnknownNameError("queries", queries, ("text", "last", "visual", "all"))

    def attention(self, queries: QuerySet) -> torch.Tensor:
        """Post-softmax attention rows [B, H, Q, S] of a query set, float32; zero rows where a sample has fewer."""
        index, valid = self.query_index(queries)
        rows = self._attention().rows(index)
        return rows * valid[:, None, :, None].to(rows.device)

    def mean_attention(self, queries: QuerySet) -> torch.Tensor:
        """The head mean of ``attention``, [B, Q, S], without holding the rows of all heads at a time."""
        index, valid = self.query_index(queries)
        inputs, step = self._attention(), self._attention().block_rows
        parts = [inputs.rows(index[:, start : start + step]).mean(1) for start in range(0, index.shape[1], step)]
        rows = torch.cat(parts, dim=1)
        return rows * valid[..., None].to(rows.device)

    def attention_blocks(self, queries: QuerySet) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rows of ``attention`` [B, H, q, S] and of ``visible`` [B, q, S], a block of queries at a time: for
        scorers that sum over queries, whose memory then does not grow with how many there are. Where a sample has fewer
        queries its rows are arbitrary and see nothing."""
        index, valid = self._block_queries(queries)
        inputs = self._attention()
        for start in range(0, index.shape[1], inputs.block_rows):
            place = slice(start, start + inputs.block_rows)
            seen = self._seen(queries, start, index[:, place], valid[:, place])
            yield inputs.rows(index[:, place], seen), seen

    def _block_queries(self, queries: QuerySet) -> tuple[torch.Tensor, torch.Tensor]:
        """``query_index``, made once for all layers of a stage; of visual queries only those that still stand."""
        if isinstance(queries, torch.Tensor):
            return self.query_index(queries)
        key = ("queries", queries, self.stage.number)
        if key not in self.memo:
            self.memo[key] = (None, self._standing() if queries == "visual" else self.query_index(queries))
        return self.memo[key][1]

    def _seen(self, queries: QuerySet, start: int, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """What the queries of a block may attend to, bool [B, q, S]; for a short query set made once for the layers of
        a stage that share their mask."""
        inputs = self._attention()
        short = start == 0 and index.numel() * inputs.keys.shape[2] <= SHARED and index.shape[1] < inputs.block_rows
        if isinstance(queries, torch.Tensor) or not short:
            return inputs.visible(index) & valid[..., None].to(inputs.keys.device)
        key = ("seen", queries, self.stage.number, id(inputs.mask), inputs.window, inputs.keys.shape[2])
        if key not in self.memo:
            self.memo[key] = (inputs.mask, inputs.visible(index) & valid[..., None].to(inputs.keys.device))
        return self.memo[key][1].to(inputs.keys.device)

    def _standing(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots of the visual tokens that still stand, and which exist: what ``query_index`` gives without the gaps."""
        gone = zip(self.layout.lengths, self.layout.counts, self.stage.lengths, strict=True)
        counts = [now - (whole - visual) for whole, visual, now in gone]
        return ragged_index(self.visual_mask, max(counts))

    def visible(self, queries: QuerySet) -> torch.Tensor:
        """Which slots each query may attend to, bool [B, Q, S]; False rows where a sample has fewer queries."""
        index, valid = self.query_index(queries)
        seen = self._attention().visible(index)
        return seen & valid[..., None].to(seen.device)

    def one_hot(self, queries: QuerySet) -> torch.Tensor:
        """The rows of the identity that belong to a query set, float32 [B, Q, S]."""
        index, valid = self.query_index(queries)
        return torch.nn.functional.one_hot(index, self.hidden_states.shape[1]).float() * valid[..., None]

    def propagate(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [B, Q, S] times this layer's head-mean attention matrix, float32 [B, Q, S]."""
        return self._attention().propagate(rows)

    def _attention(self) -> AttentionInputs:
        if self.inputs is None:
            raise PrunekitError(
                f"layer {self.layer}: attention was not captured; a scorer that reads attention, queries or keys "
                "must set the class attribute uses_attention = True"
            )
        return self.inputs
