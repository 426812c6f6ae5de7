"""Hard and easy questions, as VTC-Bench tells them apart (ACL 2026, arXiv 2510.07143): by whether an image that was
shrunk to the same number of tokens is enough. What it answers needs no choice of tokens."""

from __future__ import annotations

from typing import Final

import numpy as np

from prunekit.records.metrics import Method

DOWNSAMPLE: Final = "downsample"
GROUPS: Final = ("hard", "easy")


def is_downsampled(method: Method) -> bool:
    """Whether a run shrank its images and did nothing else."""
    return DOWNSAMPLE in (method.get("name"), method.get("schedule"))


def groups(right: np.ndarray) -> dict[str, list[int]]:
    """The places of the questions that a downsampled run gets wrong (hard) and right (easy), without empty groups.

    Args:
        right: what its answers are worth, [seeds, examples].
    """
    wrong = right.mean(0) < 0.5
    places = zip(GROUPS, (np.flatnonzero(wrong).tolist(), np.flatnonzero(~wrong).tolist()), strict=True)
    return {name: chosen for name, chosen in places if chosen}
