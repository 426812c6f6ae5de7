"""The arguments of a small sweep, and the rows of its files."""

from __future__ import annotations

import json

from commands import arguments


def sweep(model_folder, folder, *more):
    words = [a for a in arguments(model_folder, folder) if not a.startswith("hydra.run.dir")]
    rows = ["hydra/sweeper=rows"] if any(m.startswith("sweep.rows=") for m in more) else []
    return ["-m", *words, *rows, f"hydra.sweep.dir={folder}", *more]


def json_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
