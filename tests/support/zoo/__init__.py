"""A zoo of tiny random models: one for each family of ``AutoModelForImageTextToText``, with inputs to match."""

from __future__ import annotations

import torch

from . import gemma, grids, hybrids, llava_like, quantised, queries, qwen_like, refused, sparse
from .base import FAMILIES, Batch, construct, make_batch
from .notes import NOTES

__all__ = [
    "BEYOND",
    "BROKEN",
    "FAMILY",
    "NAMES",
    "NOTES",
    "REFUSED",
    "SUPPORTS",
    "Batch",
    "batch",
    "build",
    "build_mended",
    "variants",
]

# importing them fills FAMILIES
_MODULES = (llava_like, qwen_like, quantised, queries, gemma, grids, hybrids, sparse, refused)

NAMES: tuple[str, ...] = tuple(name for name, f in FAMILIES.items() if not f.refused and not f.beyond)
BEYOND: tuple[str, ...] = tuple(name for name, f in FAMILIES.items() if f.beyond)  # the index drops keys by itself
FAMILY: dict[str, str] = {name: f.kind or name for name, f in FAMILIES.items()}  # some families have several kinds
REFUSED: dict[str, str] = {name: family.refused for name, family in FAMILIES.items() if family.refused}
BROKEN: dict[str, str] = {name: family.broken for name, family in FAMILIES.items() if family.broken}
SUPPORTS: dict[str, tuple[str, ...]] = {name: family.attn for name, family in FAMILIES.items()}


def build(name: str, attn: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """A tiny random model, fp32, in eval mode; the weights depend on the seed alone, not on ``attn``."""
    if name in SUPPORTS and attn not in SUPPORTS[name]:
        raise ValueError(f"{name} has no {attn!r} attention, only {', '.join(SUPPORTS[name])}")
    return construct(name, attn, seed)


def build_mended(name: str, attn: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """``build`` of an entry in ``BROKEN``, given what the installed transformers forgot."""
    model, mend = build(name, attn, seed), FAMILIES[name].mend
    assert mend is not None
    mend(model)
    return model


def variants(name: str) -> tuple[str, ...]:
    """The kinds of batch the family takes: "plain" and some of "two_images", "text_only_row", "video"."""
    family = FAMILIES[name]
    return ("plain", *family.variants, *(("video",) if family.video else ()))


def batch(name: str, padding: str = "none", seed: int = 0, variant: str = "plain") -> Batch:
    """Three samples; ``padding`` "none" gives them one length, "left" and "right" different ones."""
    if padding not in ("none", "left", "right") or variant not in variants(name):
        raise ValueError(f"{name} has no batch {variant!r} with padding {padding!r}")
    return make_batch(name, padding, seed, variant)
