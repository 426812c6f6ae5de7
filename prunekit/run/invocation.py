"""One call of the command line: its folders, the locks on them, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Invocation:
    """What one call of the command line leaves behind while Hydra runs it.

    Hydra makes its callbacks itself and turns what they raise into a warning, so errors are noted here and raised when
    Hydra has returned.

    Attributes:
        place: the option and the folder that ``resume=true`` needs to find the latest run, or sweep, again.
        claims: the locks on the folders that are written.
        failed_jobs: names of a sweep's jobs that have no result.
        error: of a single run, or of a sweep's table.
        sum_up: prints which jobs of the sweep failed; None before it begins and after it was summed up.
    """

    place: dict[str, str] = field(default_factory=dict)
    claims: ExitStack = field(default_factory=ExitStack)
    failed_jobs: list[str] = field(default_factory=list)
    error: Exception | None = None
    sum_up: Callable[[], None] | None = None

    @property
    def folder(self) -> str:
        """The folder that is written; "?" before it is known."""
        return next(iter(self.place.values()), "?")


_current: ContextVar[Invocation] = ContextVar("invocation")


def begin() -> Invocation:
    """A fresh invocation, from now on the current one."""
    invocation = Invocation()
    _current.set(invocation)
    return invocation


def current() -> Invocation:
    """The current invocation; a launcher's worker process begins one of its own."""
    return _current.get(None) or begin()
