"""Digests: short hashes of bytes and text."""

from __future__ import annotations

import hashlib


def digest(content: str | bytes, length: int = 16) -> str:
    """The first ``length`` hexadecimal letters of the SHA-256 of bytes, or of text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:length]


def id_number(name: str) -> int:
    """Eight bytes that stand for an example's id, where hundreds of thousands are remembered."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
