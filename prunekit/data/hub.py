"""Rows of data sets that the ``datasets`` library opens: from the hub, its cache, a local copy, or ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.data.tables import BATCH, Row, Table
from prunekit.errors import PrunekitError, check_choice
from prunekit.network import cache_only, offline

SAVED = ("dataset_dict.json", "state.json")
"""Either of these marks a folder that ``save_to_disk`` wrote."""


def open_hub(
    path: str, config: str | None = None, split: str = "test", revision: str | None = None, streaming: bool = True
) -> Table:
    """A split of a data set; images stay encoded until an example is asked for them.

    Args:
        path: a hub id, a local copy of its repository, or a folder written by ``save_to_disk``.
        config: name of the hub's configuration (subset).
        streaming: read rows as they come instead of downloading the whole split first.

    Raises:
        PrunekitError: if it cannot be found or reached, or has no such split.
    """
    datasets = _library()
    folder = Path(path)
    if any((folder / name).is_file() for name in SAVED):
        found = _saved(datasets, folder, split)
    else:
        found = _loaded(datasets, path, config, split, revision, streaming)
    name = " ".join(word for word in (path, config, split) if word)
    size = getattr(found, "num_rows", None)
    if size == 0:
        raise PrunekitError(f"{name}: no rows")
    raw = found.with_format("arrow")
    columns = found.column_names or next(iter(raw.iter(batch_size=1))).column_names

    def rows() -> Iterator[tuple[str, Row | str]]:
        for number, row in enumerate(_unbroken(raw.iter(batch_size=BATCH), name), 1):
            yield f"{name} row {number}", row

    return Table(name, columns, rows, size, folder if folder.is_dir() else Path())


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise PrunekitError("this data needs the datasets library: pip install 'prunekit[data]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _saved(datasets: ModuleType, folder: Path, split: str) -> Any:
    try:
        found = datasets.load_from_disk(str(folder))
    except IndexError:  # the library stumbles over a table without rows
        raise PrunekitError(f"{folder}: no rows") from None
    except (OSError, ValueError, KeyError) as error:
        raise PrunekitError(f"{folder}: cannot be loaded: {_first(error)}") from None
    if not isinstance(found, dict):
        return found  # a single split
    check_choice(f"split of {folder}", split, found)
    return found[split]


def _loaded(
    datasets: ModuleType, path: str, config: str | None, split: str, revision: str | None, streaming: bool
) -> Any:
    why_offline = "" if Path(path).exists() else offline()
    options: dict[str, object] = {"split": split, "revision": revision, "streaming": streaming and not why_offline}
    try:
        with _cache_alone(datasets) if why_offline else nullcontext():
            return _load(datasets.load_dataset, path, config, options)
    except ValueError as error:  # an unknown configuration or split: the library lists those there are
        raise PrunekitError(f"data '{path}': {_first(error)}") from None
    except Exception as error:  # the network's errors come in classes of several libraries
        raise PrunekitError(_not_found(path, why_offline, error)) from None


def _load(load_dataset: Callable[..., Any], path: str, config: str | None, options: dict[str, object]) -> Any:
    """Load it; a stream of Parquet without read-ahead, which would hold on to all that was read of a file."""
    if not options["streaming"]:
        return load_dataset(path, config, **options)
    from pyarrow.dataset import ParquetFragmentScanOptions

    scan = ParquetFragmentScanOptions(pre_buffer=False)
    try:
        found = load_dataset(path, config, **options, fragment_scan_options=scan)
    except ValueError as error:
        if "fragment_scan_options" not in str(error):
            raise
        found = load_dataset(path, config, **options)  # not Parquet, which alone has the option
    # A row group at a time, where opening a file anew for each costs nothing.
    return found.reshard() if Path(path).is_dir() and hasattr(found, "reshard") else found


@contextmanager
def _cache_alone(datasets: ModuleType) -> Iterator[None]:
    """Within, the library looks into its cache alone; it keeps the setting in a place of its own too."""
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        with cache_only():
            yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _unbroken(batches: Iterator[Any], name: str) -> Iterator[Row]:
    """The rows of Arrow batches; what breaks the reading says after which row."""
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                yield row
                number += 1
    except (OSError, ValueError, RuntimeError) as error:  # the network, a damaged file
        raise PrunekitError(f"{name}: reading stopped after row {number}: {_first(error)}") from None


def _not_found(path: str, why_offline: str, error: Exception) -> str:
    if Path(path).exists():
        return f"data '{path}': the folder cannot be loaded: {type(error).__name__}: {_first(error)}"
    from datasets import config
    from huggingface_hub import constants

    where = f"no such folder, not in the cache ({config.HF_DATASETS_CACHE})"
    return (
        f"data '{path}' not found: {where}, and {why_offline or f'not at {constants.ENDPOINT}, or private there'}; set "
        "data.path to a local copy of the repository, a folder of save_to_disk, or a .parquet file"
    )


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
