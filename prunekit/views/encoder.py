"""What a component may look at in one block of a vision encoder, computed only when touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.tensors.attention import AttentionInputs
from prunekit.tensors.indexing import ragged_index
from prunekit.views.layer import QuerySet, View
from prunekit.views.places import Places, grid_places


@dataclass
class EncoderView(View):
    """One block of a vision encoder: "samples" are images, "visual tokens" their patches, the sequence is the block's.

    Query sets are "cls" (the first token, where the encoder has one), "visual" (the patches that stand) and "all".
    ``prefix`` tokens stand before the patches.
    """

    hidden_states: torch.Tensor
    layer: int
    alive: torch.Tensor
    slots: torch.Tensor
    grid: tuple[int, int] | None
    inputs: AttentionInputs | None = field(default=None, repr=False)
    has_cls: bool = True
    prefix: int = 1
    site: str = "vision"
    notes: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def places(self) -> Places:
        """Row and column of each patch, in images that are samples of their own.

        Raises:
            PrunekitError: where images differ in size.
        """
        if self.grid is None:
            raise PrunekitError(f"block {self.layer} of the encoder: images of different sizes have no one grid")
        return grid_places(len(self.alive), self.grid, self.hidden_states.device)

    def query_index(self, queries: QuerySet) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(queries, torch.Tensor):
            return ragged_index(queries, int(queries.sum(1).max()))
        if queries == "visual":
            return self.slots, self.alive
        if queries == "all":
            slots_S = torch.arange(self.hidden_states.shape[1], device=self.slots.device)
            index_TS = slots_S.expand(len(self.slots), -1)
            return index_TS, torch.ones_like(index_TS, dtype=torch.bool)
        if queries == "cls" and self.has_cls:
            first_T1 = torch.zeros_like(self.slots[:, :1])
            return first_T1, torch.ones_like(first_T1, dtype=torch.bool)
        names = ("cls", "visual", "all") if self.has_cls else ("visual", "all")
        raise UnknownNameError("queries of an encoder:", queries, names)
