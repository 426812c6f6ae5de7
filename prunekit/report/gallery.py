"""``kept.png``: one image under several questions, what each method keeps of it, and by which scores."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from prunekit.evaluation.kept import FILE, KeptCut, KeptExample, read_kept
from prunekit.evaluation.sheets import SIDE, dim, panel_counts, pixels
from prunekit.records.runs import Question
from prunekit.report.style import GREY, pyplot, shorten
from prunekit.results.entries import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, ROWS = 6, 3
LEGEND = (
    "Upper rows: what stays, the rest washed out. Lower rows: scores at the last cut, dark low, bright high, "
    "grey gone before."
)
RIGHT, WRONG = "#0072B2", "#B34700"
"""Right and wrong answers differ by their mark and by colours that colour-blind readers tell apart."""


@dataclass
class Shown:
    """An example with what each of some entries kept of it: those that have it on record."""

    question: Question
    image: bytes
    kept: dict[str, KeptExample]
    """By the entries' labels."""


def recorded(entries: Sequence[Entry], questions: Sequence[Question]) -> list[Shown]:
    """Examples on record in order of the data, those with known places of their tokens only."""
    by_id = {q.id: q for q in questions}
    found: dict[str, Shown] = {}
    for entry in entries:
        for key, kept in read_kept(entry.runs[0].folder / FILE).items() if entry.runs else ():
            if key in by_id and kept.boxes is not None and last_cut(kept) is not None:
                shown = found.setdefault(key, Shown(by_id[key], kept.image, {}))
                shown.kept[entry.label] = kept
    return [found[q.id] for q in questions if q.id in found]


def usable(kept: KeptExample) -> list[KeptCut]:
    """The cuts whose tokens are those of the example."""
    return [cut for cut in kept.cuts if kept.boxes is not None and len(cut.kept) == len(kept.boxes)]


def last_cut(kept: KeptExample) -> KeptCut | None:
    """The last of them, None if there is none."""
    found = usable(kept)
    return found[-1] if found else None


def heat(scores: np.ndarray) -> np.ndarray:
    """Scores [N] scaled to 0..1 between their 2nd and 98th percentile: attention has a few very large values, which
    would leave nothing else to see. NaN where a token was gone, and everywhere if all scores are equal."""
    known = scores[np.isfinite(scores)]
    if not len(known) or known.min() == known.max():
        return np.full(len(scores), np.nan)
    low, high = np.percentile(known, [2, 98])
    if low == high:
        low, high = known.min(), known.max()
    return np.where(np.isfinite(scores), np.clip((scores - low) / (high - low), 0, 1), np.nan)


def choose(shown: Sequence[Shown], entries: Sequence[Entry]) -> tuple[list[Shown], list[Entry]]:
    """Questions about the image that has most of them on record, and the entries of the budget that has most."""
    by_image: dict[str, list[Shown]] = {}
    for example in shown:
        by_image.setdefault(example.question.image_id, []).append(example)
    picked = max(by_image.values(), key=lambda group: min(len(group), ROWS))[:ROWS]
    by_budget: dict[str, list[Entry]] = {}
    for entry in entries:
        if all(entry.label in example.kept for example in picked):
            by_budget.setdefault(entry.keep, []).append(entry)
    return picked, max(by_budget.values(), key=len)[:COLUMNS] if by_budget else []


def draw_gallery(shown: Sequence[Shown], entries: Sequence[Entry], path: Path) -> bool:
    """Draw the grid; False, and nothing drawn, where nothing is on record with known places."""
    picked, columns = choose(shown, entries) if shown else ([], [])
    if not columns:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(
        2 * len(picked), len(columns) + 1, squeeze=False, layout="constrained",
        figsize=(1.5 + 1.75 * (len(columns) + 1), 0.4 + 3.95 * len(picked)),
    )  # fmt: skip
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for number, example in enumerate(picked):
        upper, lower = axes[2 * number], axes[2 * number + 1]
        _ask(upper[0], lower[0], example, columns[0])
        for place, entry in enumerate(columns, 1):
            if number == 0:
                upper[place].annotate(shorten(entry.label, 22), (0.5, 1.22), xycoords="axes fraction", ha="center",
                                      fontsize=9, fontweight="bold")  # fmt: skip
            _panel(upper[place], lower[place], example, entry)
    figure.supxlabel(LEGEND, fontsize=8, color=GREY)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a question's script that the font lacks; the page shows it
        figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
    return True


def _ask(upper: Axes, lower: Axes, example: Shown, entry: Entry) -> None:
    """The whole image, and below it the question with what is right and what the dense model says."""
    upper.imshow(picture(example.image))
    row = entry.runs[0].rows[example.question.id]
    lines = textwrap.wrap(example.question.text.replace("$", r"\$"), 24)[:7]
    lower.text(0, 0.98, "\n".join(lines), va="top", fontsize=9, transform=lower.transAxes)
    dense = f"{'✓' if row['dense_correct'] >= 0.5 else '✗'} dense: {shorten(row['dense_prediction'], 16)}"
    answers = f"answer: {shorten(' / '.join(example.question.answers), 18)}"
    lower.text(0, 0.02, f"{answers}\n{dense}", va="bottom", fontsize=8, color=GREY, transform=lower.transAxes)


def _panel(upper: Axes, lower: Axes, example: Shown, entry: Entry) -> None:
    kept, row = example.kept[entry.label], entry.runs[0].rows[example.question.id]
    cut = last_cut(kept)
    assert cut is not None and kept.boxes is not None and kept.panels is not None
    image = picture(example.image)
    standing = np.flatnonzero(cut.kept).tolist()
    upper.imshow(dim(image, kept.boxes, standing))
    if len(counts := panel_counts(kept.panels, standing)) > 1:
        _draw_bars(upper, counts)
    right = row["correct"] >= 0.5
    answer = f"{'✓' if right else '✗'} {shorten(row['prediction'] or '(nothing)', 18)}"
    upper.set_title(answer, fontsize=8, color=RIGHT if right else WRONG, pad=3)
    values = heat_map(image, kept.boxes, heat(cut.scores))
    lower.imshow(image.convert("L"), cmap="gray", alpha=0.35)
    if np.isnan(values).all():
        lower.text(0.5, 0.5, "no scores", ha="center", va="center", fontsize=9, transform=lower.transAxes)
    else:
        lower.imshow(np.ma.masked_invalid(values), cmap="viridis", alpha=0.8, vmin=0, vmax=1)
    lower.set_xlabel(f"{int(cut.kept.sum())} of {len(cut.kept)}, {cut.where}", fontsize=7, color=GREY, labelpad=2)


def _draw_bars(axis: Axes, counts: Sequence[tuple[int, int]]) -> None:
    """Under several pictures or frames, how much of each stays."""
    bars = axis.inset_axes((0, -0.2, 1, 0.16))
    bars.bar(range(len(counts)), [stay / total for stay, total in counts], width=0.9, color=RIGHT)
    bars.set(xticks=[], yticks=[], ylim=(0, 1))
    bars.spines[:].set_color(GREY)


def heat_map(image: Image.Image, boxes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of tokens on the pixels of their boxes; NaN elsewhere."""
    painted = np.full((image.height, image.width), np.nan)
    for box, value in zip(boxes, values, strict=True):
        if not np.isnan(box).any():
            left, top, right, bottom = pixels(box, image)
            painted[top : bottom + 1, left : right + 1] = value
    return painted


def picture(data: bytes) -> Image.Image:
    """The sheet of JPEG bytes, of a size at which patches have clear edges."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = max(1.0, SIDE / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
