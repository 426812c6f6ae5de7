"""Runs in processes of their own, forked so that models need not be loaded again, to be killed or to work together."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable


def fork(work: Callable[[], None], environment: dict[str, str] | None = None) -> int:
    """A child that does ``work``; its exit code is 0, what SystemExit says, or 70 after a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment or {})
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int, timeout: float = 120) -> int:
    """Wait for a child; negative for the signal that ended it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    raise AssertionError(f"child {child} did not end in {timeout} s")


def together(works: list[Callable[[], None]]) -> list[int]:
    """Exit codes of processes that find each other as under ``torchrun``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(len(works)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = ({**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(len(works)))
    children = [fork(work, environment) for work, environment in zip(works, ranks, strict=True)]
    return [exit_code(child) for child in children]
