"""Visual tokens of pictures and of a video by model, under published image settings: ``docs/processors.md``.

``python -m tools.measure_processors``: processors of transformers with the settings of the checkpoints, models of
their geometry with tiny weights. Each number is what the prompt holds; the model's own forward pass, dense and pruned,
has run on it, and raises if its features are not as many. No network; a minute or two.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import published  # noqa: E402
from prunekit.data.example import Example  # noqa: E402
from prunekit.data.source import open_source  # noqa: E402
from prunekit.errors import RowError  # noqa: E402
from prunekit.evaluation.batches import Batcher  # noqa: E402
from prunekit.models import load_model  # noqa: E402
from prunekit.pruning.pruner import Pruner  # noqa: E402
from prunekit.results.markdown import markdown_table  # noqa: E402

PRUNER = Pruner(schedule="one_shot", fusion="single", keep_ratio=0.25)
SHOWN = {
    "640×480": ["photo"],
    "turned 480×640": ["turned"],
    "360×800": ["portrait"],
    "28×28": ["tiny"],
    "320×240": ["grey"],
    "2000×1": ["line"],
    "1×2000": ["column"],
    "two (320×240, 28×28)": ["RGBA", "tiny"],
    "video": ["film"],
}
SAME = ("grey", "16-bit", "RGBA", "CMYK")
"""Pictures of one size, whose counts must not differ."""

PAGE = """# Counts of visual tokens

Written by `python -m tools.measure_processors` (transformers {version}).

What a picture costs before pruning, by model: the number of its visual tokens in the prompt. The processors are those
of transformers with the image settings of the published checkpoints (sizes, tiles, pixel budgets, pooling), the models
have their geometry and tiny weights, so that no hub is needed. Behind each number the model's own forward pass has run,
dense and with a quarter of the tokens kept; it raises if its features are not as many.

{table}

*turned* is a file of 640×480 pixels that its EXIF orientation turns upright. A picture of 320×240 counts the same in
grey, 16-bit grey, RGBA and CMYK. *two* stands for two pictures in one question; LLaVA-OneVision then cuts none into
tiles. The video has 4 frames of 64×48.

- *rejected*: the processor refuses the picture: Qwen-VL above an aspect ratio of 200, Pixtral where a side shrinks to
  nothing. The row gets an error that names it and the size, and the run goes on.
- PaliGemma's processor has no chat template: set `model.prompt`.
- SmolVLM2's processor needs `num2words`. It writes images and videos into one input, so a question that shows both is
  an error of its row.
"""


def count(batcher: Batcher, example: Example) -> int | None:
    """Visual tokens of an example that the model ran on, None if its processor rejects it."""
    try:
        inputs = batcher.inputs([example])
    except RowError:
        return None
    model = batcher.loaded.model
    with torch.no_grad():
        model(**inputs)
        with PRUNER(model) as trace:
            model(**inputs)
    return trace.cuts[0].kept.shape[1]


def measure(name: str, folder: Path, rows: Path) -> list[str]:
    """The cells of a checkpoint."""
    prompt = None if published.CHECKPOINTS[name].chat != "{}{question}" else "{images}{question}"
    batcher = Batcher(load_model(str(published.save(name, folder)), device="cpu", prompt=prompt))
    counts: dict[str, int | None] = {}
    for example in open_source({"name": "jsonl", "path": str(rows), "frames": 4}):
        if example.video is None or published.CHECKPOINTS[name].video:
            counts[example.id] = count(batcher, example)
    assert len({counts[kind] for kind in SAME}) == 1, counts
    return [_cell(counts, column) for column in SHOWN]


def _cell(counts: dict[str, int | None], column: str) -> str:
    number = counts.get(column, 0)
    return "rejected" if number is None else f"{number:,}" if number else "–"


def main() -> None:
    """Measure all checkpoints and write the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, lines = Path(place), []
        rows = published.write_rows(folder, SHOWN | {kind: [kind] for kind in SAME})
        for name, number in zip(published.CHECKPOINTS, itertools.count()):
            lines.append([name, *measure(name, folder / str(number), rows)])
            print(*lines[-1], flush=True)
    page = PAGE.format(version=transformers.__version__, table=markdown_table(["model", *SHOWN], lines))
    (ROOT / "docs" / "processors.md").write_text(page)


if __name__ == "__main__":
    main()
