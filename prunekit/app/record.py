"""What the explorer shows of one question: a typed record, and the plain data that the page draws."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.app.query import Query
from prunekit.evaluation.kept import KeptCut
from prunekit.report.page import cut_data, rounded


@dataclass(frozen=True)
class Word:
    """One token of an answer as text, and the probability that the model gave it."""

    text: str
    probability: float


@dataclass(frozen=True)
class Side:
    """What one method, or the dense model, did.

    Attributes:
        label, about: its name, and the parts it is made of.
        right: what the data's metric says of the answer; None where the data do not know the question.
        earlier: its cuts for ``Query.before``; none without that.
        tokens_per_layer: tokens that each decoder layer processed in the prefill.
        flops: of the decoder's layers in the prefill, formula ``gated``.
        kv_bytes: keys and values stored after the prefill, measured.
        prefill_seconds: of one prefill with the vision encoder, the median of several.
        dense_seconds: the same of the dense model, taken in turn with it.
        prefill_ratio: the median of their ratios.
        answer_seconds: of the whole answer, once.
        error: why there is no answer; all else is then empty.
    """

    label: str
    about: str
    answer: str = ""
    words: tuple[Word, ...] = ()
    right: float | None = None
    cuts: tuple[KeptCut, ...] = ()
    earlier: tuple[KeptCut, ...] = ()
    tokens_per_layer: tuple[int, ...] = ()
    flops: float = 0.0
    kv_bytes: int = 0
    prefill_seconds: float = 0.0
    dense_seconds: float = 0.0
    prefill_ratio: float = 1.0
    answer_seconds: float = 0.0
    error: str = ""

    @property
    def in_common(self) -> tuple[int, ...]:
        """Of each cut, how many of its kept tokens the earlier question kept as well."""
        return tuple(int((a.kept & b.kept).sum()) for a, b in zip(self.cuts, self.earlier, strict=False))


@dataclass(frozen=True)
class Record:
    """One question, as far as it is answered.

    Attributes:
        picture: the contact sheet of the pictures and frames, as JPEG.
        boxes: of each of N visual tokens on the sheet, in fractions of it, [N, 4]; None where places are unknown.
        panels: the picture or frame of each token [N].
        places: of each token where it stands, in words.
        answers: those that the data accept; none where they do not know the question.
        regions: boxes on the picture that hold the answer, in fractions.
        sides: the dense model first.
    """

    query: Query
    picture: bytes
    boxes: np.ndarray | None
    panels: np.ndarray | None
    places: tuple[str, ...]
    answers: tuple[str, ...]
    regions: tuple[tuple[float, float, float, float], ...]
    sides: tuple[Side, ...] = ()

    def data(self, whole: bool = True) -> dict[str, Any]:
        """For the page, as JSON takes it; only the ``whole`` brings the user's own file back, to be saved."""
        query = self.query.model_dump()
        if query["upload"] is not None and not whole:
            query["upload"]["data"] = ""
        return {
            "query": query,
            "picture": f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode()}",
            "boxes": rounded(self.boxes),
            "panels": [] if self.panels is None else self.panels.tolist(),
            "places": self.places,
            "answers": self.answers,
            "regions": self.regions,
            "sides": [_side(side) for side in self.sides],
        }


def _side(side: Side) -> dict[str, Any]:
    earlier = [*side.earlier, *[None] * (len(side.cuts) - len(side.earlier))]
    common = [*side.in_common, *[None] * (len(side.cuts) - len(side.in_common))]
    plain = ("label", "about", "answer", "right", "tokens_per_layer", "error", "flops", "kv_bytes", "answer_seconds",
             "prefill_seconds", "dense_seconds", "prefill_ratio")  # fmt: skip
    return {
        **{name: getattr(side, name) for name in plain},
        "words": [[word.text, round(word.probability, 4)] for word in side.words],
        "cuts": [_cut(*three) for three in zip(side.cuts, earlier, common, strict=True)],
    }


def _cut(cut: KeptCut, earlier: KeptCut | None, common: int | None) -> dict[str, Any]:
    scores = [float(f"{score:.4g}") if math.isfinite(score) else None for score in cut.scores.tolist()]
    before = None if earlier is None else cut_data(earlier)["kept"]
    return {**cut_data(cut), "scores": scores, "before": before, "common": common}
