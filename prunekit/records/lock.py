"""A folder has one writer at a time.

The lock is the operating system's, so that it goes with the process that holds it; ``.prunekit.writer.json`` beside it
says who that is. ``records.rows`` keeps rows of several runs apart in spite of everything.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prunekit import ranks
from prunekit.errors import FolderError
from prunekit.files import write_whole

LOCK, WRITER = ".prunekit.lock", ".prunekit.writer.json"

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_claimed: dict[str, tuple[int, int]] = {}
"""Folders that are written here, each with the process and thread that claimed it: a forked child has claimed none."""


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the folder's only writer for the length of the block; inside the block of a claim it costs nothing.

    Of several processes that share a run the first one holds the lock, and all of them learn the outcome. With ``wait``
    the claim comes after the present writer's.

    Raises:
        FolderError: while another process, or another thread, writes the folder.
    """
    name, owner = os.path.realpath(folder), (os.getpid(), threading.get_ident())
    if _claimed.get(name) == owner:
        yield
        return
    locks: list[FileLock] = []
    ranks.by_first(lambda: locks.extend(_lock(folder, Path(name), wait)))
    _claimed[name] = owner
    try:
        yield
    finally:
        del _claimed[name]
        for lock in locks:
            with suppress(OSError):
                (Path(name) / WRITER).unlink()
            lock.release()


def _lock(folder: Path, place: Path, wait: bool) -> list[FileLock]:
    """The lock of a folder, by its absolute ``place``, held; none, with a warning, where the disk knows no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / LOCK, timeout=-1 if wait else 0, mode=0o664, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderError(f"'{folder}' is being written by {_writer(place)}; wait, or choose another folder") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"'{folder}' cannot be locked ({error}): see that no other run writes it", stacklevel=4)
        return []
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    write_whole(place / WRITER, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
    return [lock]


def _writer(folder: Path) -> str:
    """Who writes a folder that is locked, and since when."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads((folder / WRITER).read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    return "another process, which has just begun"


def check_free(folder: Path) -> None:
    """Raise FolderError if another process writes the folder now; nothing is created where there is no lock."""
    if (folder / LOCK).exists():
        with claimed(folder):
            pass
