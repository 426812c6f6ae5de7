"""``predictions.jsonl``: appended to as answers come, mended after a kill, put into the data's order at the end.

Under several processes each appends to a part of its own, ``predictions.rank0003.jsonl``, and the first joins them.

Every row names its run, by ``run``, the digest of the run's identity: rows of another one are never counted, however
they came into the folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from prunekit import ranks
from prunekit.data.example import Prediction
from prunekit.digests import id_number
from prunekit.errors import PrunekitError
from prunekit.files import replacing
from prunekit.records.metrics import Metrics

FILE = "predictions.jsonl"
PARTS = "predictions.rank*.jsonl"

NEEDED = ("id", "correct", "dense_correct", "kept", "prompt_tokens", "tokens_per_layer")
"""What a finished row holds; one without is done again, and so is one with an error: it may be mended by now."""

Row = Prediction


def own_file(folder: Path) -> Path:
    """Where this process appends its rows."""
    return folder / (FILE if ranks.world() == 1 else f"predictions.rank{ranks.rank():04d}.jsonl")


def clear(folder: Path) -> None:
    """Remove the rows of an earlier run."""
    for path in _files(folder):
        path.unlink()


def append(file: BinaryIO, row: Row) -> None:
    """One line, out of this process's hands when the call returns: a kill loses at most the line being written."""
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def mend(folder: Path, run: str) -> None:
    """Join what an interrupted run left, in one file of whole, finished rows of ``run``, each once. By the first
    process alone.

    Raises:
        PrunekitError: for rows that name no run, as prunekit 0.1 wrote them: whose they are nobody can tell.
    """
    if any("run" not in row for row in read(folder) if is_finished(row)):
        raise PrunekitError(
            f"resume: the rows in '{folder / FILE}' do not say which run they are of (prunekit 0.1 wrote them): begin "
            "anew with overwrite=true instead of resume=true, or in another folder"
        )
    broken = others = 0
    seen: set[int] = set()
    with _replacing(folder) as out:
        for line, row in _lines(folder):
            if row is None:
                broken += 1
            elif row.get("run", run) != run:
                others += 1
            elif id_number(row["id"]) not in seen and is_finished(row):
                seen.add(id_number(row["id"]))
                out.write(line + b"\n")
    if broken:
        warnings.warn(f"resume: dropped {broken} broken line{'s' * (broken > 1)} of {folder / FILE}", stacklevel=3)
    if others:
        warnings.warn(f"resume: dropped {others} row{'s' * (others > 1)} of another run in {folder}", stacklevel=3)


def is_finished(row: Row) -> bool:
    """Whether a row needs no second try."""
    return not row.get("error") and all(name in row for name in NEEDED)


def finished_ids(folder: Path) -> set[int]:
    """``id_number`` of the ids that are done, of a folder that is mended."""
    return {id_number(row["id"]) for _, row in _lines(folder) if row is not None}


def gather(folder: Path, places: Mapping[int, int], run: str) -> None:
    """When all processes are done: the first joins the rows of ``run`` in the order of the data, each once; those of
    other data (of a larger ``data.limit``, say) stand behind them.

    Args:
        places: the place of each example by ``id_number`` of its id.
    """
    ranks.wait()
    if ranks.is_first():
        _join(folder, places, run)
    ranks.wait()


def _join(folder: Path, places: Mapping[int, int], run: str) -> None:
    files = _files(folder)
    with ExitStack() as stack:
        handles = [stack.enter_context(path.open("rb")) for path in files]
        spots = _spots(handles, places, run)
        out = stack.enter_context(_replacing(folder))
        for place in sorted(spots):
            number, start, length = spots[place]
            handles[number].seek(start)
            out.write(handles[number].read(length).rstrip(b"\n") + b"\n")


def _spots(handles: Sequence[BinaryIO], places: Mapping[int, int], run: str) -> dict[int, tuple[int, int, int]]:
    """Where the row of each place, and of this run, stands: number of the file, first byte, length."""
    spots: dict[int, tuple[int, int, int]] = {}
    behind = len(places)
    for number, handle in enumerate(handles):
        start = 0
        for line in handle:
            if (row := _parse(line)) is not None and row.get("run") == run:
                place = places.get(id_number(row["id"]))
                behind += place is None
                spots.setdefault(behind if place is None else place, (number, start, len(line)))
            start += len(line)
    return spots


def read(folder: Path) -> Iterator[Row]:
    """The rows of a folder, one at a time; broken lines are passed over."""
    return (row for _, row in _lines(folder) if row is not None)


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / FILE, *sorted(folder.glob(PARTS))) if path.exists()]


def _lines(folder: Path) -> Iterator[tuple[bytes, Row | None]]:
    """Lines of all files of rows, and what they hold: None for one that a kill cut short."""
    for path in _files(folder):
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip(b"\n"), _parse(line)


def _parse(line: bytes) -> Row | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("id"), str):
        return None
    return cast(Row, content)


def check_rows(rows: Sequence[Row], metrics: Metrics, folder: Path) -> None:
    """Raise unless the rows of a finished run are all its own, and as many as its ``metrics`` count at least."""
    runs, count = {row.get("run") for row in rows}, metrics.get("examples", 0) + metrics.get("errors", 0)
    if len(runs) > 1:
        raise PrunekitError(f"'{folder}' holds rows of {len(runs)} runs: resume=true there keeps its own")
    if len(rows) < count:
        raise PrunekitError(f"'{folder}' is half-written: {len(rows)} of {count} predictions")


@contextmanager
def _replacing(folder: Path) -> Iterator[BinaryIO]:
    """A new ``predictions.jsonl``, which takes the place of all files of rows once it is whole."""
    with replacing(folder / FILE) as out:
        yield out
    for path in folder.glob(PARTS):
        path.unlink()
