"""What a vision encoder did in one run, and what scorers see of it once its patches are visual tokens.

Letters: T images (or tiles) that went through the encoder, P patches of each, R rows that the projector made of all of
them one after the other, C width of the encoder, B samples, N visual tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from prunekit.errors import PrunekitError
from prunekit.families.vision import VisionTower
from prunekit.tensors.attention import AttentionInputs
from prunekit.tensors.indexing import on_device
from prunekit.tensors.sequences import PromptLayout
from prunekit.views.doubts import Doubt
from prunekit.views.trace import CutRecord


@dataclass
class BlockRecord:
    """The attention of one block: its inputs, an entry for each call, and where the patches stood in its sequence.

    ``index`` [T, P] is None while they all stand in order.
    """

    inputs: list[AttentionInputs] = field(default_factory=list)
    index: torch.Tensor | None = None


@dataclass
class VisionRecord:
    """One run of the encoder, made by its hooks and taken by the prefill that follows.

    Attributes:
        features: what the projector read, [T, P, C], or [R · group, C] where images are packed.
        cls: the CLS token beside it, [T, C], None without one.
        blocks: attention of the blocks that are kept for scorers.
        rows: for each placeholder of the batch in order the row that it holds, one long axis of them, -1 for a token of
            the model's own (a newline); None where rows and placeholders agree one by one.
        images: rows of each image or tile.
        cuts: what happened inside the encoder, [T, P] each.
        tokens: tokens that each block processed, of each image.
        grids: rows and columns of rows of each image or tile.
        runs: how often the encoder ran since a prefill last took its record.
        order: of packed images, their patches in an order in which those of a token are neighbours, long; None if they
            are so.
        index: of an encoder alone, where the token that stands for each patch is in its output, [T, P].
        doubts: what may be wrong with its components' answers.
    """

    tower: VisionTower
    features: torch.Tensor | None = None
    cls: torch.Tensor | None = None
    blocks: dict[int, BlockRecord] = field(default_factory=dict)
    rows: torch.Tensor | None = None
    images: list[int] = field(default_factory=list)
    cuts: list[CutRecord] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    runs: int = 1
    order: torch.Tensor | None = None
    index: torch.Tensor | None = None
    doubts: list[Doubt] = field(default_factory=list)

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """Per-patch values [T, P, ...] or [R · group, ...] as rows [R, group, ...]."""
        inner = x.shape[1:] if self.tower.packed else x.shape[2:]
        if (order := self.order if self.tower.packed else self.tower.order) is not None:
            x = x.index_select(0 if self.tower.packed else 1, order.to(x.device))
        return x.reshape(-1, self.tower.group, *inner)

    def source(self, layout: PromptLayout) -> torch.Tensor:
        """The row behind each visual token, long [B, N], -1 where there is none.

        Beams and returned sequences repeat each sample after the encoder has run.

        Raises:
            PrunekitError: where rows and placeholders do not agree.
        """
        total = sum(self.images)
        rows = torch.arange(total, device=layout.exists.device) if self.rows is None else self.rows
        repeats, rest = divmod(sum(layout.counts), len(rows))
        whole = repeats and layout.counts == tuple(n for n in layout.counts[::repeats] for _ in range(repeats))
        if rest or not whole or (self.tower.tiled and self.rows is None) or self.runs > 1:
            raise PrunekitError(
                f"{sum(layout.counts)} visual tokens in the batch, {len(rows)} rows of the vision encoder of "
                f"'{self.tower.name}' in {self.runs} runs: which belongs to which is not known (videos, left-overs)"
            )
        counts = on_device(layout.counts[::repeats], rows.device)
        starts_B = (counts.cumsum(0) - counts).repeat_interleave(repeats)
        place_BN = starts_B[:, None] + torch.arange(layout.exists.shape[1], device=rows.device)
        source_BN = rows.to(place_BN.device)[place_BN.clamp(max=len(rows) - 1)]
        return source_BN.masked_fill(~layout.exists, -1)


class VisionView:
    """The encoder's side of the visual tokens: ``view.vision``. Everything is computed only when touched.

    A token of the model's own, behind which there is no patch (a newline between tiles), has zeros; ``exists`` [B, N]
    is False there. Where the projector joins patches, a token's features are theirs side by side, its keys and
    attention their means.

    Attributes:
        record: the run of the encoder.
        source: the row behind each token, long [B, N], -1 where there is none.
    """

    def __init__(self, record: VisionRecord, source: torch.Tensor) -> None:
        self.record, self.source = record, source

    @property
    def exists(self) -> torch.Tensor:
        """Tokens that patches stand behind, bool [B, N]."""
        return self.source >= 0

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a CLS token."""
        return self.record.tower.has_cls

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Per-row values [R, ...] as the visual tokens have them: [B, N, ...], zero where there is no row."""
        source_BN = self.source.to(rows.device)
        values = rows[source_BN.clamp(min=0)]
        return values * (source_BN >= 0).reshape(*source_BN.shape, *[1] * (rows.ndim - 1)).to(values.dtype)

    @cached_property
    def image(self) -> torch.Tensor:
        """Which image or tile of the batch each token comes from, long [B, N], -1 where none."""
        counts_T = on_device(self.record.images, self.source.device)
        number_R = torch.arange(len(counts_T), device=counts_T.device).repeat_interleave(counts_T)
        return number_R[self.source.clamp(min=0)].masked_fill(self.source < 0, -1)

    @cached_property
    def places(self) -> tuple[torch.Tensor, ...]:
        """Row and column of each token in its image or tile, that one's rows and columns, and its number (``image``):
        five of long [B, N]; the last is -1, and the others mean nothing, where no patch stands behind a token."""
        record, device = self.record, self.source.device
        sizes = torch.tensor(record.grids, device=device)
        starts = on_device([0, *record.images], device).cumsum(0)
        image_BN = self.image.clamp(min=0)
        rows_BN, columns_BN = sizes[image_BN].unbind(-1)
        place_BN = self.source
        if record.tower.packed and record.rows is not None:  # rows are sorted otherwise than tokens
            place_BN = record.rows.argsort().to(device)[place_BN.clamp(min=0)]
        within_BN = (place_BN - starts[image_BN]).clamp(min=0)
        return within_BN // columns_BN, within_BN % columns_BN, rows_BN, columns_BN, self.image

    @cached_property
    def features(self) -> torch.Tensor:
        """What the projector reads of each token: [B, N, C], or [B, N, group · C]."""
        assert self.record.features is not None
        return self.gather(self.record.features.reshape(sum(self.record.images), -1))

    @cached_property
    def cls(self) -> torch.Tensor | None:
        """The CLS token that the projector would read, [B, C]: of several images of a sample the mean. None without
        one, and where the projector reads squares of patches."""
        if self.record.cls is None or self.record.tower.group > 1:
            return None
        cls_TC = self.record.cls
        image_BN, images = self.image.to(cls_TC.device), len(cls_TC)
        spare = torch.zeros(len(image_BN), images + 1, device=cls_TC.device)  # whose last column takes the rest
        share_BT = spare.scatter(1, image_BN.masked_fill(image_BN < 0, images), 1.0)[:, :images]
        share_BT = share_BT / share_BT.sum(1, keepdim=True).clamp(min=1)
        return share_BT.to(cls_TC.dtype) @ cls_TC

    def keys(self, block: int | None = None) -> torch.Tensor:
        """Keys [B, N, H, d] of an encoder block: the one whose output the projector reads, or -1 for the last."""
        return self._per_token(block, lambda inputs: inputs.keys.transpose(1, 2))

    def attention(self, block: int | None = None) -> torch.Tensor:
        """Attention [B, N] of an encoder block, mean over heads: what the CLS token gives each patch; without a CLS
        token, what a patch receives from all of them on average."""
        first = 0 if self.has_cls else None
        return self._per_token(block, lambda inputs: received(inputs, first)[..., None])[..., 0]

    def unsplit_attention(self, block: int | None = None) -> torch.Tensor:
        """The same with queries and keys not split into heads, softmax(QKᵀ/√C) (LLaVA-PruMerge), [B, N]."""
        first = 0 if self.has_cls else None
        return self._per_token(block, lambda inputs: received(_joined(inputs), first)[..., None])[..., 0]

    def _per_token(self, block: int | None, read: Callable[[AttentionInputs], torch.Tensor]) -> torch.Tensor:
        tower = self.record.tower
        number = tower.read if block is None else block % len(tower.blocks)
        if (block_record := self.record.blocks.get(number)) is None:
            raise PrunekitError(
                f"view.vision: block {number} of the encoder was not kept, only {[*self.record.blocks]}"
            )
        parts = [read(inputs)[:, tower.prefix :] for inputs in block_record.inputs]
        values = torch.cat([x.flatten(0, 1) for x in parts]) if tower.packed else torch.cat(parts)
        if block_record.index is not None:
            index_TP = block_record.index.clamp(min=0)
            values = values[torch.arange(len(index_TP), device=index_TP.device)[:, None], index_TP]
        return self.gather(self.record.flat(values).mean(1))


def received(inputs: AttentionInputs, query: int | None = None) -> torch.Tensor:
    """Head-mean attention [T, S] that one query gives, or that all of them give on average."""
    images, _, size, _ = inputs.keys.shape
    if query is not None:
        index_T1 = torch.full((images, 1), query, device=inputs.keys.device)
        return inputs.rows(index_T1).mean(1)[:, 0]
    total_TS = inputs.propagate(torch.ones(images, 1, size, device=inputs.keys.device))[:, 0]
    if inputs.mask is None or inputs.mask.ndim < 4:
        return total_TS / size
    everywhere = torch.arange(size, device=inputs.keys.device).expand(images, -1)
    return total_TS / inputs.visible(everywhere).sum(1).clamp(min=1)  # images in one sequence do not see each other


def _joined(inputs: AttentionInputs) -> AttentionInputs:
    """One head as wide as all of them."""
    queries_T1SC, keys_T1SC = (x.transpose(1, 2).flatten(2)[:, None] for x in (inputs.queries, inputs.keys))
    return AttentionInputs(queries_T1SC, keys_T1SC, inputs.mask, queries_T1SC.shape[-1] ** -0.5, inputs.causal)
