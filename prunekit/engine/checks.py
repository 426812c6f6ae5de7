"""Scores that are NaN: found on the device, said when the host need not wait for it."""

from __future__ import annotations

import torch

from prunekit.engine.state import Prefill
from prunekit.errors import PrunekitError

Unchecked = tuple[tuple[int, torch.Tensor], ...]
"""Layers of cuts, and which samples' scores are NaN there, bool [B]."""


def nan_scores(state: Prefill) -> Unchecked:
    """The flags of a prefill's cuts; tokens that were gone before a cut have no score and do not count."""
    standing = [state.layout.exists, *(cut.kept for cut in state.cuts)]
    flags = zip(state.cuts, standing, strict=False)
    return tuple((cut.layer, (cut.scores.isnan() & alive).any(1)) for cut, alive in flags)


def raise_nan(unchecked: Unchecked) -> None:
    """Raise for the first cut whose scores were NaN."""
    for layer, bad in unchecked:
        if bool(bad.any()):
            where = bad.nonzero()[:, 0].tolist()
            raise PrunekitError(f"NaN scores at the cut before layer {layer}, samples {where}")
