"""The errors a user can cause: all of them are ``ValueError``, each one line that names the offending word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunekitError(ValueError):
    """Base of every error that prunekit raises on purpose."""


class RowError(PrunekitError):
    """One example cannot be used, the others can; the message names the file and the row."""


class FolderError(PrunekitError):
    """A folder that must not be written now: another run writes it, or finished results would be lost."""


class UnknownNameError(PrunekitError):
    """A word that nothing is registered under; the message offers the nearest one."""

    def __init__(self, what: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"Unknown {what} '{name}'.{hint} Available: {', '.join(names) or 'none'}")


def check_interval(what: str, value: float, interval: str) -> None:
    """Raise unless ``value`` lies in an interval, written as "[0, 1)"; ``what`` names the option in the message."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not (low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")):
        raise PrunekitError(f"{what} must lie in {interval}, not {value}")


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``; ``what`` names the option in the message.

    Raises:
        UnknownNameError: a ``PrunekitError`` that names the value, offers the nearest choice and lists all.
    """
    if value not in (known := tuple(choices)):
        raise UnknownNameError(what, value, known)
