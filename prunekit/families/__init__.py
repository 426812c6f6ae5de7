"""What is known of model families, in one place.

What can be found on the model itself is found there: token ids in its config, modules in its structure (``base``).
What cannot is a row of the table ``SUPPORT``, one for each model type (``support``): whether the tests hold it exact,
or why it is refused; its adapter, a subclass of ``Family``, where the generic path does not fit (``special_cases``);
and what is known of its vision encoder (``vision`` for its modules, ``encoder_shapes`` for its cost).
"""

from __future__ import annotations

import functools
import warnings

from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.base import Family
from prunekit.families.support import DECODERS, EXACT, FAMILIES, REFUSED, SUPPORT, FamilySupport, support_of
from prunekit.families.wrappers import unwrap

__all__ = [
    "EXACT",
    "FAMILIES",
    "REFUSED",
    "SUPPORT",
    "Family",
    "FamilySupport",
    "family_of",
    "make_family",
    "support_of",
    "unwrap",
]


def model_type(model: nn.Module) -> str:
    """The model type of a loaded model, by its config; "" without one."""
    return getattr(getattr(unwrap(model), "config", None), "model_type", None) or ""


def make_family(model: nn.Module) -> Family:
    """A loaded model through its family's adapter, that of its language model, or the generic one."""
    row = support_of(model_type(model))
    text = getattr(getattr(unwrap(model), "config", None), "text_config", None)
    adapter = row.adapter or DECODERS.get(getattr(text, "model_type", "")) or Family
    return adapter(model, row.fixed_grid)


def family_of(model: nn.Module) -> Family:
    """The family of a model that is to be pruned.

    Raises:
        PrunekitError: in one line with the model type and the reason, where pruning cannot be exact.
    """
    name = model_type(model)
    row = support_of(name)
    if row.refused:
        raise PrunekitError(f"model type '{name}' cannot be pruned: {row.refused}")
    family = make_family(model)
    if reason := family.refusal():
        raise PrunekitError(f"model type '{name}' cannot be pruned: {reason}")
    if not row.exact:
        _warn_unverified(name)
    return family


@functools.cache
def _warn_unverified(name: str) -> None:
    warnings.warn(f"model type '{name}' is not among the verified families: pruned by the generic path", stacklevel=2)
