"""What a vision encoder did in one run, and what scorers see of it once its patches are visual tokens.

Letters: T images (or tiles) that went through the encoder, P patches of each, R rows that the projector made of all of
them one after the other, C width of the encoder, B samples, N visual tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        kind: "image" or "video": what the model was encoding.
        features: what the projector read, [T, P, C], or [R · group, C] where images are packed.
        cls: the CLS token beside it, [T, C], None without one.
        blocks: attention of the blocks that are kept for scorers.
        rows: for each placeholder of its kind in order the row that it holds, one long axis of them, -1 for a token of
            the model's own (a newline); None where rows and placeholders agree one by one.
        images: rows of each image or tile.
        cuts: what happened inside the encoder, [T, P] each.
        tokens: tokens that each block processed, of each image.
        grids: rows and columns of rows of each image or tile.
        order: of packed images, their patches in an order in which those of a token are neighbours, long; None if they
            are so.
        pool: averages values of patches [T, P, X] over those of each token, [T, P', X] (packed: [P, X] to [R, X]);
            None where nothing is pooled.
        pooled_behind: whether that happens behind the projector, so that its output is no visual token yet.
        index: of an encoder alone, where the token that stands for each patch is in its output, [T, P].
        doubts: what may be wrong with its components' answers.
    """

    tower: VisionTower
    kind: str = "image"
    features: torch.Tensor | None = None
    cls: torch.Tensor | None = None
    blocks: dict[int, BlockRecord] = field(default_factory=dict)
    rows: torch.Tensor | None = None
    images: list[int] = field(default_factory=list)
    cuts: list[CutRecord] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    order: torch.Tensor | None = None
    pool: Callable[[torch.Tensor], torch.Tensor] | None = None
    pooled_behind: bool = False
    index: torch.Tensor | None = None
    doubts: list[Doubt] = field(default_factory=list)

    @property
    def size(self) -> int:
        """R, the rows of all images."""
        return sum(self.images)

    def token_rows(self) -> torch.Tensor:
        """The row behind each placeholder of its kind, long; -1 for a token of the model's own."""
        return torch.arange(self.size) if self.rows is None else self.rows.cpu()

    def raster(self) -> torch.Tensor:
        """The place of each row in the raster of its image, long [R]."""
        starts_R = torch.tensor([0, *self.images]).cumsum(0)[:-1].repeat_interleave(torch.tensor(self.images))
        place_R = torch.arange(self.size)
        if self.tower.packed and self.rows is not None:  # rows are sorted otherwise than tokens
            place_R = self.rows.cpu().argsort()
        return place_R - starts_R

    def feature_rows(self) -> torch.Tensor:
        """What the projector read of each row, [R, C] or [R, group · C]."""
        assert self.features is not None
        return self.features.reshape(self.size, -1)

    def block_rows(self, number: int, read: Callable[[AttentionInputs], torch.Tensor]) -> torch.Tensor:
        """A value of each row [R, ...]: ``read`` of the attention of a block, [T, S, ...], averaged over the patches
        behind the row.

        Raises:
            PrunekitError: for a block that was not kept.
        """
        if (block := self.blocks.get(number)) is None:
            raise PrunekitError(f"view.vision: block {number} of the encoder was not kept, only {[*self.blocks]}")
        if self.tower.halves is not None and number <= self.tower.halves:
            raise PrunekitError(
                f"view.vision: block {number} of '{self.tower.name}' sees patches before squares of them are joined"
            )
        parts = [read(inputs)[:, self.tower.prefix :] for inputs in block.inputs]
        values = torch.cat([x.flatten(0, 1) for x in parts]) if self.tower.packed else torch.cat(parts)
        if block.index is not None:
            index_TP = block.index.clamp(min=0)
            values = values[torch.arange(len(index_TP), device=index_TP.device)[:, None], index_TP]
        if self.pool is not None:
            lead = 1 if self.tower.packed else 2
            return self.pool(values.flatten(lead)).reshape(self.size, *values.shape[lead:])
        if (order := self.order if self.tower.packed else self.tower.order) is not None:
            values = values.index_select(0 if self.tower.packed else 1, order.to(values.device))
        return values.reshape(self.size, self.tower.group, *values.shape[1 if self.tower.packed else 2 :]).mean(1)


def token_sources(records: Sequence[VisionRecord], layout: PromptLayout, video_BS: torch.Tensor | None) -> torch.Tensor:
    """The row behind each visual token, long [B, N], -1 where there is none; rows are those of all records in turn.
    Beams and returned sequences repeat each sample after the encoder has run.

    Args:
        records: runs of the encoder for one batch, at most one for images and one for videos.
        video_BS: which placeholders are videos, bool [B, S]; None where they are all of one kind.

    Raises:
        PrunekitError: where rows and placeholders do not agree.
    """
    tower, total, rows = records[0].tower, sum(layout.counts), [record.token_rows() for record in records]
    encoded = sum(map(len, rows))
    repeats, rest = divmod(total, encoded)
    whole = repeats and layout.counts == tuple(n for n in layout.counts[::repeats] for _ in range(repeats))
    known = not rest and whole and len({record.kind for record in records}) == len(records)
    if known and len(rows) > 1:
        assert video_BS is not None
        video_N = video_BS[::repeats][layout.visual[::repeats]].cpu()
        stream_N = torch.full((encoded,), -1)
        start = 0
        for record, own in zip(records, rows, strict=True):
            mine_N = video_N if record.kind == "video" else ~video_N
            known = known and int(mine_N.sum()) == len(own)
            if known:
                stream_N[mine_N] = torch.where(own < 0, -1, own + start)
            start += record.size
        rows = [stream_N]
    if not known or any(tower.tiled and record.rows is None for record in records):
        raise PrunekitError(
            f"{total} visual tokens in the batch, {encoded} rows of the vision encoder of "
            f"'{tower.name}' in {len(records)} runs: which belongs to which is not known (videos, left-overs)"
        )
    device = layout.exists.device
    stream, counts = rows[0].to(device), on_device(layout.counts[::repeats], device)
    starts_B = (counts.cumsum(0) - counts).repeat_interleave(repeats)
    place_BN = starts_B[:, None] + torch.arange(layout.exists.shape[1], device=device)
    return stream[place_BN.clamp(max=encoded - 1)].masked_fill(~layout.exists, -1)


class VisionView:
    """The encoder's side of the visual tokens: ``view.vision``. Everything is computed only when touched.

    A token of the model's own, behind which there is no patch (a newline between tiles), has zeros; ``exists`` [B, N]
    is False there. Where the projector joins patches, a token's features are theirs side by side, its keys and
    attention their means; where the model averages the patches of a video, all three are averages.

    Attributes:
        records: the runs of the encoder, one for images and one for videos.
        source: the row behind each token, long [B, N], -1 where there is none; rows of all records one after the other.
    """

    def __init__(self, records: Sequence[VisionRecord], source: torch.Tensor) -> None:
        self.records, self.source, self.tower = records, source, records[0].tower

    @property
    def exists(self) -> torch.Tensor:
        """Tokens that patches stand behind, bool [B, N]."""
        return self.source >= 0

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a CLS token."""
        return self.tower.has_cls

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Per-row values [R, ...] as the visual tokens have them: [B, N, ...], zero where there is no row."""
        source_BN = self.source.to(rows.device)
        values = rows[source_BN.clamp(min=0)]
        return values * (source_BN >= 0).reshape(*source_BN.shape, *[1] * (rows.ndim - 1)).to(values.dtype)

    @cached_property
    def image(self) -> torch.Tensor:
        """Which image, tile or frame of the batch each token comes from, long [B, N], -1 where none."""
        counts_T = on_device([n for record in self.records for n in record.images], self.source.device)
        number_R = torch.arange(len(counts_T), device=counts_T.device).repeat_interleave(counts_T)
        return number_R[self.source.clamp(min=0)].masked_fill(self.source < 0, -1)

    @cached_property
    def places(self) -> tuple[torch.Tensor, ...]:
        """Row and column of each token in its image or tile, that one's rows and columns, and its number (``image``):
        five of long [B, N]; the last is -1, and the others mean nothing, where no patch stands behind a token."""
        device = self.source.device
        sizes = torch.tensor([grid for record in self.records for grid in record.grids], device=device)
        rows_BN, columns_BN = sizes[self.image.clamp(min=0)].unbind(-1)
        place_BN = torch.cat([record.raster() for record in self.records]).to(device)[self.source.clamp(min=0)]
        return place_BN // columns_BN, place_BN % columns_BN, rows_BN, columns_BN, self.image

    @cached_property
    def features(self) -> torch.Tensor:
        """What the projector reads of each token: [B, N, C], or [B, N, group · C]."""
        return self.gather(torch.cat([record.feature_rows() for record in self.records]))

    @cached_property
    def cls(self) -> torch.Tensor | None:
        """The CLS token that the projector would read, [B, C]: of several images of a sample the mean. None without
        one, and where the projector reads squares of patches."""
        parts = [record.cls for record in self.records if record.cls is not None]
        if not parts or self.tower.group > 1:
            return None
        cls_TC = torch.cat(parts)
        image_BN, images = self.image.to(cls_TC.device), len(cls_TC)
        spare = torch.zeros(len(image_BN), images + 1, device=cls_TC.device)  # whose last column takes the rest
        share_BT = spare.scatter(1, image_BN.masked_fill(image_BN < 0, images), 1.0)[:, :images]
        share_BT = share_BT / share_BT.sum(1, keepdim=True).clamp(min=1)
        return share_BT.to(cls_TC.dtype) @ cls_TC

    def keys(self, block: int | None = None) -> torch.Tensor:
        """Keys [B, N, H, d] of an encoder block: the one whose output the projector reads, or -1 for the last."""
        return self._per_token(block, lambda inputs: inputs.keys.transpose(1, 2))

    def values(self, block: int | None = None) -> torch.Tensor:
        """Values [B, N, H, d] of an encoder block, like ``keys`` (components with ``uses_values``).

        Raises:
            PrunekitError: where no component has asked for values.
        """

        def read(inputs: AttentionInputs) -> torch.Tensor:
            if inputs.values is None:
                raise PrunekitError(
                    "view.vision.values were not noted; a component that reads them must set the class attribute "
                    "uses_values = True, and timm's encoders do not show theirs"
                )
            return inputs.values.transpose(1, 2)

        return self._per_token(block, read)

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
        number = self.tower.read if block is None else block % len(self.tower.blocks)
        return self.gather(torch.cat([record.block_rows(number, read) for record in self.records]))


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
