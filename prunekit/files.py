"""Files that are written whole or not at all: a reader, or a run that is resumed, never meets half of one."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock

from prunekit import ranks
from prunekit.errors import PrunekitError

FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml, where the wheel has it


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name once the block is done: under a name of its own until then, since several
    processes may try."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        yield file
    part.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, data: object) -> None:
    """Write plain data as JSON, whole; of several processes that share a run the first one does."""
    if ranks.is_first():
        write_whole(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The JSON of a file; None if there is none, or it is cut short."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def unwritable(path: Path) -> str | None:
    """Why a file cannot be written at ``path``, None if it can; nothing is created or changed."""
    if path.is_dir():
        return "it is a folder"
    there = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if there != path and not there.is_dir():
        return f"'{there}' is no folder"
    return None if os.access(there, os.W_OK) else f"no permission to write '{there}'"


def written(error: BaseException) -> str | None:
    """The file that was being written when an error came up, None if there was none: a full disk's own error does not
    say it."""
    name, trace = None, error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, io.IOBase) and re.search("[wax+]", str(getattr(value, "mode", ""))):
                name = str(getattr(value, "name", None) or name)
        trace = trace.tb_next
    return name


def put_between(path: Path, text: str, name: str, markers: tuple[str, str] | None = None) -> None:
    """Replace what stands between a file's markers, by default those of the table ``name``, by ``text``; without
    markers it goes to the end. Several sweeps may write their tables into one file: each waits for the one before."""
    begin, end = markers or (f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with suppress(OSError, NotImplementedError):  # where nothing can be locked, nobody waits
        lock.acquire()
    try:
        old = path.read_text() if path.exists() else ""
        before, _, rest = old.partition(begin)
        after = rest.partition(end)[2].lstrip()
        head = f"{before.rstrip()}\n\n" if before.strip() else ""
        write_whole(path, f"{head}{begin}\n{text.strip()}\n{end}\n" + (f"\n{after}" if after else ""))
    finally:
        lock.release()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file."""
    try:
        data = yaml.load(path.read_text(), FastLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PrunekitError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise PrunekitError("it must hold a mapping")
    return data
