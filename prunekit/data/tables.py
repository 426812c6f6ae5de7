"""Rows of JSON-lines and Parquet files, read as they are asked for: memory does not grow with the file."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.errors import PrunekitError

Row = Mapping[str, Any]
BATCH = 16
"""Rows decoded at a time; with pages of a document in them that is some tens of megabytes."""


@dataclass(frozen=True)
class Table:
    """Rows that can be gone through again and again.

    Attributes:
        name: what errors call it.
        columns: its columns.
        rows: a new iterator over (where, row), ``where`` naming file and row; in place of a row that cannot be read, a
            text that says why.
        size: how many rows there are, None if nobody knows before reading.
        folder: where relative paths of images start.
    """

    name: str
    columns: Sequence[str]
    rows: Callable[[], Iterator[tuple[str, Row | str]]]
    size: int | None = None
    folder: Path = Path()

    def need(self, columns: Sequence[str]) -> None:
        """Raise for the first of ``columns`` that the table lacks."""
        for column in columns:
            if column not in self.columns:
                raise PrunekitError(f"{self.name}: no column '{column}'; it has {', '.join(self.columns) or 'none'}")


def open_jsonl(path: str) -> Table:
    """A file of JSON objects, one a line; empty lines are skipped. Columns are those of the first row.

    Raises:
        PrunekitError: if there is no such file, or no row in it.
    """
    file = Path(path)
    if not file.is_file():
        raise PrunekitError(f"data.path: no such file '{path}'")

    def rows() -> Iterator[tuple[str, Row | str]]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path} row {number}", _parse(line)

    first = next((row for _, row in rows() if not isinstance(row, str)), None)
    if first is None:
        raise PrunekitError(f"{path}: no rows, as JSON objects one a line")
    return Table(path, list(first), rows, folder=file.parent)


def _parse(line: bytes) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else "not a JSON object"


def chained(name: str, parts: Mapping[str, Callable[[], Table]], column: str) -> Table:
    """The rows of several tables as one, each with its part's name in ``column``. A part is opened when its rows are
    asked for; the first says at once what is there."""
    first = next(iter(parts.values()))()

    def rows() -> Iterator[tuple[str, Row | str]]:
        for part, open_part in parts.items():
            for where, row in open_part().rows():
                yield where, row if isinstance(row, str) else {**row, column: part}

    return Table(name, [*first.columns, column], rows, folder=first.folder)


def open_parquet(path: str, columns: Sequence[str] | None = None) -> Table:
    """A Parquet file, a folder of them, or a pattern such as ``data/test-*.parquet``; only ``columns`` are read.

    Raises:
        PrunekitError: if there is no such file, no row, or a file is not Parquet.
    """
    parquet = need_pyarrow(path)
    files = _files(path)
    opened = [_open(parquet, file) for file in files]
    size, names = sum(file.metadata.num_rows for file in opened), opened[0].schema_arrow.names
    if not size:
        raise PrunekitError(f"{path}: no rows")
    wanted = None if columns is None else [name for name in names if name in columns]

    def rows() -> Iterator[tuple[str, Row | str]]:
        for file in files:
            yield from _read(parquet, file, wanted)

    return Table(path, names, rows, size, Path(files[0]).parent)


def need_pyarrow(what: str) -> ModuleType:
    """``pyarrow.parquet``, or one line on how to get it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise PrunekitError(f"{what}: reading it needs pyarrow: pip install 'prunekit[data]'") from None
    return pyarrow.parquet


def _files(path: str) -> list[str]:
    place = Path(path)
    found = sorted(glob.glob(f"{glob.escape(path)}/*.parquet" if place.is_dir() else path))
    if not found:
        raise PrunekitError(f"data.path: no such file, and no Parquet files in a folder or pattern, '{path}'")
    return found


def _open(parquet: ModuleType, file: str) -> Any:
    """The open file; read-ahead is off, for it holds on to all that was read of the file."""
    try:
        return parquet.ParquetFile(file, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise PrunekitError(f"{file}: not a Parquet file: {' '.join(str(error).split())[:200]}") from None


def _read(parquet: ModuleType, file: str, columns: list[str] | None) -> Iterator[tuple[str, Row | str]]:
    number = 0
    with _open(parquet, file) as opened:
        try:
            for batch in opened.iter_batches(batch_size=BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file} row {number}", row
        except (OSError, UnicodeDecodeError) as error:  # a damaged page: what follows it cannot be found either
            raise PrunekitError(f"{file}: cannot be read after row {number}: {' '.join(str(error).split())}") from None
