"""What is known of model families, in one place.

Everything is found from the model itself: token ids from its config, modules from its structure (``base``). A family
that fits the generic path is one word in ``EXACT`` once the tests hold it; an odd one is a subclass of ``Family``
(``odd``); one whose visual tokens cannot go is a line in ``REFUSED`` with the reason (``known``).
"""

from __future__ import annotations

import functools
import warnings

from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.base import Family
from prunekit.families.known import EXACT, REFUSED
from prunekit.families.odd import FAMILIES, TEXT_FAMILIES
from prunekit.families.wrappers import unwrap

__all__ = ["EXACT", "FAMILIES", "REFUSED", "Family", "family_of", "make_family", "unwrap"]


def model_type(model: nn.Module) -> str:
    """The model type of a loaded model, by its config; "" without one."""
    return getattr(getattr(unwrap(model), "config", None), "model_type", None) or ""


def make_family(model: nn.Module) -> Family:
    """A loaded model through its family's adapter, that of its language model, or the generic one."""
    text = getattr(getattr(unwrap(model), "config", None), "text_config", None)
    kind = FAMILIES.get(model_type(model)) or TEXT_FAMILIES.get(getattr(text, "model_type", "")) or Family
    return kind(model)


def family_of(model: nn.Module) -> Family:
    """The family of a model that is to be pruned.

    Raises:
        PrunekitError: in one line with the model type and the reason, where pruning cannot be exact.
    """
    name = model_type(model)
    if name in REFUSED:
        raise PrunekitError(f"model type '{name}' cannot be pruned: {REFUSED[name]}")
    family = make_family(model)
    if reason := family.refusal():
        raise PrunekitError(f"model type '{name}' cannot be pruned: {reason}")
    if name not in EXACT:
        _warn_unverified(name)
    return family


@functools.cache
def _warn_unverified(name: str) -> None:
    warnings.warn(f"model type '{name}' is not among the verified families: pruned by the generic path", stacklevel=2)
