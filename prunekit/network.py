"""Whether the model hub can be reached: asked once, in seconds, where its client would try for minutes."""

from __future__ import annotations

import functools
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

TIMEOUT = 5.0
"""Seconds that a connection may take to be made."""


def offline() -> str:
    """Why the hub is not asked: a reason to print, or "" if it is."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if _connects(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"


@functools.cache
def _connects(endpoint: str) -> bool:
    """Whether a connection to the endpoint can be made; taken for granted behind a proxy, which alone would know."""
    parts = urlsplit(endpoint)
    if parts.scheme in urllib.request.getproxies() or not parts.hostname:
        return True
    try:
        socket.create_connection(
            (parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), TIMEOUT
        ).close()
    except OSError:
        return False
    return True


@contextmanager
def cache_only() -> Iterator[None]:
    """Within, the hub's client looks into its cache alone; the same as HF_HUB_OFFLINE for the whole process."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
