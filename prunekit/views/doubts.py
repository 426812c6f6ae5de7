"""What may be wrong with a component's answer: found on the device, said when the host need not wait for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError


@dataclass(frozen=True)
class Doubt:
    """What may be wrong with an answer: ``flags`` [B] is True for the samples in which it is."""

    what: str
    flags: torch.Tensor


def check_doubts(doubts: Iterable[Doubt]) -> None:
    """Raise for the first doubt that has come true."""
    for doubt in doubts:
        if bool(doubt.flags.any()):
            raise PrunekitError(f"{doubt.what}, samples {doubt.flags.nonzero()[:, 0].tolist()}")
