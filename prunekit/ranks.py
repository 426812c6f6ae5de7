"""The processes of one run: who is who under ``accelerate launch`` or ``torchrun``, and what they tell each other.

Both launchers say it in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A run without them is
one process, and everything here is free.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from prunekit.errors import PrunekitError

T = TypeVar("T")

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest: shares of the examples differ by more than torch's usual minutes."""


def world() -> int:
    """How many processes share this run."""
    launched = all(name in os.environ for name in _NEEDED)
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes metrics, pictures and logs."""
    return rank() == 0


def join() -> None:
    """Meet the other processes; again, or alone, it does nothing."""
    if world() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(timeout=PATIENCE)
        atexit.register(_part)


def _part() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def share(value: T) -> T:
    """The first process's value, in all of them."""
    if world() == 1:
        return value
    import torch.distributed as dist

    join()
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def by_first(work: Callable[[], None]) -> None:
    """Let the first process do something for all: what the user or the disk did wrong is raised in each of them."""
    problem: PrunekitError | OSError | None = None
    if is_first():
        try:
            work()
        except (PrunekitError, OSError) as error:
            problem = error
    if problem := share(problem):
        raise problem


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        import torch.distributed as dist

        join()
        dist.all_gather_object([None] * world(), None)
