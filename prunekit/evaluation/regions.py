"""Where the answers of examples are in their images, for scorers that ask."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.pruning.pruner import Pruner
from prunekit.views.layer import Regions


def regions_for(pruner: Pruner, examples: Sequence[Example]) -> Regions | None:
    """Where each example's answer is, in fractions of its image, for a scorer that reads it; None for all others.

    Raises:
        PrunekitError: if the data does not know it.
    """
    if not pruner.scorer.uses_regions:
        return None
    regions = []
    for example in examples:
        boxes, (width, height) = getattr(example, "regions", ()), example.image().size
        if not boxes:
            name = pruner.scorer.registered_name
            raise PrunekitError(f"scorer '{name}': the data does not say where the answer to '{example.id}' is")
        regions.append([(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes])
    return regions
