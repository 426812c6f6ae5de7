"""``kept.npz``: what stayed after each cut, and by which scores, for the first examples of a run; with their images, so
that a report needs neither model nor data."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image

from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.other import for_batch
from prunekit.evaluation.regions import regions_for
from prunekit.evaluation.sheets import SIDE, Sheets, sheets_of
from prunekit.files import replacing
from prunekit.pruning.pruner import Pruner
from prunekit.views.trace import CutRecord, Trace

FILE = "kept.npz"
SCHEMA = 2
EXAMPLES = 16
"""So many of a run's first examples are recorded; questions about one image usually follow each other."""


@dataclass(frozen=True)
class KeptCut:
    """One cut of one example: ``kept`` bool [N], ``scores`` float32 [N], NaN where a token was already gone, and all
    of them where the selector does not look at scores."""

    site: str
    layer: int
    kept: np.ndarray
    scores: np.ndarray

    @property
    def where(self) -> str:
        """Where the cut is, in words."""
        if self.site == "vision":
            return "before the encoder" if self.layer < 0 else f"in encoder block {self.layer}"
        return "before the decoder" if self.site == "input" else f"before layer {self.layer}"


@dataclass(frozen=True)
class KeptExample:
    """One example.

    Attributes:
        image_id: examples with the same pictures share it.
        image: the contact sheet of its pictures and frames, as JPEG.
        boxes, panels: of each of N tokens, as ``Sheet`` has them; None where their places are unknown.
        cuts: in order.
    """

    id: str
    image_id: str
    image: bytes
    boxes: np.ndarray | None
    panels: np.ndarray | None
    cuts: tuple[KeptCut, ...]


def record_kept(batcher: Batcher, examples: Iterable[Example], pruner: Pruner, path: Path) -> None:
    """Prefill the first ``EXAMPLES`` examples under ``pruner`` and write to ``path`` what its cuts did; one at a time,
    so that it fits wherever they could be answered."""
    sheets = sheets_of(batcher)
    write_kept(path, [_prefill(batcher, sheets, example, pruner) for example in islice(examples, EXAMPLES)])


def _prefill(batcher: Batcher, sheets: Sheets, example: Example, pruner: Pruner) -> KeptExample:
    inputs = batcher.inputs([example], pruner)
    acting = for_batch(pruner, batcher, [example])
    with torch.inference_mode(), acting(batcher.loaded.model, regions_for(acting, [example])) as trace:
        batcher.loaded.model(**inputs, use_cache=True, logits_to_keep=1)
    images, sheet, cuts = "\n".join(example.image_ids), sheets(example), cuts_of(trace, pruner)
    if sheet is None:
        return KeptExample(example.id, images, jpeg(example.image()), None, None, cuts)
    return KeptExample(example.id, images, jpeg(sheet.image), sheet.boxes, sheet.panels, cuts)


def cuts_of(trace: Trace, pruner: Pruner) -> tuple[KeptCut, ...]:
    """The cuts of the latest prefill, of a batch of one."""
    cuts = tuple(_cut(cut) for cut in trace.cuts)
    if pruner.selector.ignores_scores:  # they had no say
        cuts = tuple(replace(cut, scores=np.full_like(cut.scores, np.nan)) for cut in cuts)
    return cuts


def _cut(cut: CutRecord) -> KeptCut:
    if len(cut.kept) != 1:  # inside an encoder that makes several images of one: no row of it is the example's
        return KeptCut(cut.site, cut.layer, np.zeros(0, dtype=bool), np.zeros(0, dtype=np.float32))
    return KeptCut(cut.site, cut.layer, cut.kept[0].cpu().numpy(), cut.scores[0].float().cpu().numpy())


def jpeg(image: Image.Image) -> bytes:
    """A picture as it is recorded: JPEG, sides of at most twice ``SIDE`` pixels."""
    small, out = image.convert("RGB"), io.BytesIO()
    small.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    small.save(out, "JPEG", quality=90)
    return out.getvalue()


def write_kept(path: Path, examples: Sequence[KeptExample]) -> None:
    """Write whole or not at all; an image that several examples share is written once."""
    images = {e.image_id: e.image for e in examples}
    listed = [{"id": e.id, "image": e.image_id, "cuts": [[c.site, c.layer] for c in e.cuts]} for e in examples]
    arrays = {"info": np.array(json.dumps({"schema": SCHEMA, "images": list(images), "examples": listed}))}
    arrays |= {f"image_{i}": np.frombuffer(data, dtype=np.uint8) for i, data in enumerate(images.values())}
    for i, example in enumerate(examples):
        if example.boxes is not None and example.panels is not None:
            arrays |= {f"boxes_{i}": example.boxes.astype(np.float32), f"panels_{i}": example.panels.astype(np.int16)}
        for j, cut in enumerate(example.cuts):
            arrays |= {f"kept_{i}_{j}": cut.kept, f"scores_{i}_{j}": cut.scores}
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_kept(path: Path) -> dict[str, KeptExample]:
    """What ``write_kept`` wrote, by the examples' ids; nothing where there is no file.

    Raises:
        PrunekitError: for a file that is broken or of another version.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            info = json.loads(str(arrays["info"]))
            if info["schema"] not in (1, SCHEMA):
                raise PrunekitError(f"'{path}' has schema {info['schema']!r}; this prunekit reads up to {SCHEMA}")
            images = {name: arrays[f"image_{i}"].tobytes() for i, name in enumerate(info["images"])}
            return {e["id"]: _example(i, e, arrays, images) for i, e in enumerate(info["examples"])}
    except PrunekitError:
        raise
    except Exception as error:  # a zip, numpy or JSON error: all mean that the file is not what it should be
        raise PrunekitError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None


class Listed(TypedDict):
    """An example as ``info`` lists it: its cuts as (site, layer); ``grid`` in schema 1 alone."""

    id: str
    image: str
    cuts: list[tuple[str, int]]
    grid: NotRequired[tuple[int, int]]


def _example(number: int, listed: Listed, arrays: Mapping[str, np.ndarray], images: dict[str, bytes]) -> KeptExample:
    cuts = tuple(
        KeptCut(site, layer, arrays[f"kept_{number}_{j}"], arrays[f"scores_{number}_{j}"])
        for j, (site, layer) in enumerate(listed["cuts"])
    )
    boxes, panels = (arrays.get(f"{name}_{number}") for name in ("boxes", "panels"))
    if grid := listed.get("grid"):  # schema 1: one image, tokens in rows of a grid
        boxes, panels = grid_boxes(*grid), np.zeros(grid[0] * grid[1], dtype=np.int16)
    return KeptExample(listed["id"], listed["image"], images[listed["image"]], boxes, panels, cuts)


def grid_boxes(rows: int, columns: int) -> np.ndarray:
    """Left, top, right and bottom of each cell of a grid over a whole picture, float32 [rows · columns, 4]."""
    y, x = np.indices((rows, columns)).reshape(2, -1)
    edges = np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1)
    return edges.astype(np.float32)
