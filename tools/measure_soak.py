"""A soak: many synthetic examples through ``data=parquet`` and a tiny model; memory and rate as the run goes on.

``python -m tools.measure_soak`` (needs pyarrow: ``pip install -e '.[data]'``). Every example has an image of its own;
one in a thousand is broken. Ends with 1 if memory grew by more than ``--grown`` MB between a tenth of the way and the
end of the predictions.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

SIDE, CHUNK, BROKEN = 24, 500, 1000
COLORS = ("red", "green", "blue", "grey")


def write_parquet(path: Path, count: int) -> None:
    """``count`` rows of noise pictures and one question in four wordings."""
    import numpy
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rng = numpy.random.default_rng(0)
    writer: Any = None
    for start in range(0, count, CHUNK):
        rows = []
        for number in range(start, min(start + CHUNK, count)):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=numpy.uint8)).save(picture, "PNG")
            content = picture.getvalue() if number % BROKEN != BROKEN - 1 else picture.getvalue()[:40]
            question = f"what color is the {('', 'left ', 'upper left ', 'lower right ')[number % 4]}tile"
            rows.append({"image": content, "question": question, "answers": [COLORS[number % 4]], "task": "color"})
        table = pyarrow.Table.from_pylist(rows)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def write_model(folder: Path) -> None:
    """An untrained model of the embedded model's kind, as small as they come."""
    from tools.embedded.config import Size, build_model
    from tools.embedded.export import export

    size = Size(tower_layers=2, tower_width=32, tower_mlp=48, layers=4, width=32, mlp=48, heads=2)
    export(build_model(size, seed=0), size, folder, {})


def resident() -> float:
    """Memory that is this process's own, MB: without the files of libraries, which come and go."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20


class Watch(threading.Thread):
    """Notes (rows done, seconds, MB) once a second while a run appends to its predictions."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.over, self.start_time = path, threading.Event(), time.monotonic()
        self.notes: list[tuple[int, float, float]] = []

    def run(self) -> None:
        rows = read = 0
        while not self.over.wait(1.0):
            if not self.path.exists():
                continue
            with self.path.open("rb") as file:
                file.seek(read)
                found = file.read()
            rows, read = rows + found.count(b"\n"), read + len(found)
            self.notes.append((rows, time.monotonic() - self.start_time, resident()))


def report(notes: list[tuple[int, float, float]], count: int) -> float:
    """Print a line for each tenth; growth in MB from the first to the last of them."""
    print(f"{'rows':>8} {'s':>8} {'rows/s':>8} {'MB':>8}")
    marks = [next(note for note in notes if note[0] >= count * tenth // 10) for tenth in range(1, 11)]
    before = notes[0]
    for mark in marks:
        print(
            f"{mark[0]:8d} {mark[1]:8.0f} {(mark[0] - before[0]) / max(mark[1] - before[1], 1.0):8.1f} {mark[2]:8.1f}"
        )
        before = mark
    return marks[-1][2] - marks[0][2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--grown", type=float, default=32.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PRUNEKIT_CACHE"] = str(folder / "cache")
        write_parquet(folder / "rows.parquet", given.count)
        write_model(folder / "model")
        from prunekit.run import cli

        options = [f"model.name={folder / 'model'}", f"data.path={folder / 'rows.parquet'}", "data.max_new_tokens=2"]
        options += [f"hydra.run.dir={folder / 'run'}", "logger.mode=disabled", "device=cpu"]
        sys.argv[1:] = ["model=hf", "data=parquet", f"batch_size={given.batch_size}", *options]
        watch = Watch(folder / "run" / "predictions.jsonl")
        watch.start()
        cli.main()
        watch.over.set()
        watch.join()
        grown = report(watch.notes, given.count)
        metrics = json.loads((folder / "run" / "metrics.json").read_text())
        most, found = (
            max(note[2] for note in watch.notes),
            f"{metrics['examples']} examples, {metrics['errors']} errors",
        )
        print(f"{found}; memory grew by {grown:.1f} MB, most {most:.0f}")
    return int(grown > given.grown)


if __name__ == "__main__":
    sys.exit(main())
