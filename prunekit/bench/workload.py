"""What is run: a prompt with its visual tokens as features, and the pixels that they would come from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunekit.cost.reading import shape_of
from prunekit.cost.shapes import ModelShape
from prunekit.errors import PrunekitError
from prunekit.families import SUPPORT, Family, make_family, support_of
from prunekit.families.support import PatchLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.data.example import Example
    from prunekit.models import LoadedModel

BEFORE = 16
"""Text tokens ahead of the image (LLaVA's chat templates have some 35, instructions follow the image)."""


@dataclass
class Workload:
    """Prompts of one length, without padding.

    Attributes:
        inputs: makes the keyword arguments of one prefill, a fresh mapping for each call.
        vision: runs the vision encoder and projector on the prompts' images, None where it cannot be called apart.
        visual, text, batch: visual and other tokens of a prompt, and how many prompts.
        images: images (or tiles) of one prompt.
        places: where the visual tokens stand, [visual].
    """

    family: Family
    shape: ModelShape
    inputs: Callable[[], dict[str, Any]]
    vision: Callable[[], Any] | None
    visual: int
    text: int
    batch: int
    images: int
    places: torch.Tensor

    @property
    def before(self) -> int:
        """Text tokens ahead of the first visual one."""
        return int(self.places[0])


def synthetic(model: PreTrainedModel, visual: int, text: int, batch: int) -> Workload:
    """``batch`` like prompts: text, ``visual`` placeholders with random features, text.

    Raises:
        PrunekitError: for models that do not take features in place of pixels.
    """
    family = make_family(model)
    if not support_of(family.model_type).synthetic:
        known = ", ".join(name for name, row in SUPPORT.items() if row.synthetic)
        raise PrunekitError(f"bench.visual_tokens: '{family.model_type}' is none of {known}; leave it to a question")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise PrunekitError(f"bench: '{family.model_type}' of this transformers takes no image features")
    device, before = model.device, min(BEFORE, text // 2)
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(before, before + visual)
    ordinary = min(80, *family.token_ids)
    ids = torch.randint(min(5, ordinary - 1), ordinary, (visual + text,), generator=generator).repeat(batch, 1)
    ids[:, places] = family.token_ids[0]
    features = torch.randn(visual, family.text_config.hidden_size, generator=generator).to(device, model.dtype)
    given: dict[str, Any] = {"input_ids": ids.to(device)}
    grid = _grid(family, visual)
    if grid is not None:
        given |= {
            "image_grid_thw": torch.tensor([grid] * batch, device=device),
            "mm_token_type_ids": (ids == family.token_ids[0]).int().to(device),
        }

    def inputs() -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        found = BaseModelOutputWithPooling(pooler_output=[features] * batch)
        return {**given, "mm_encoder_outputs": {"image": found}}

    shape = shape_of(model)
    images = 1 if shape.vision is None else shape.vision.images(visual)
    vision = _vision(model, family, shape, images * batch, grid, batch)
    return Workload(family, shape, inputs, vision, visual, text, batch, images, places)


def _layout(family: Family) -> PatchLayout:
    layout = support_of(family.model_type).patches
    assert layout is not None  # known for all whose features can be made up
    return layout


def _grid(family: Family, visual: int) -> list[int] | None:
    """One image of ``visual`` merged patches, as square as they divide, for models that want to know."""
    if not _layout(family).packed:
        return None
    merge = family.config.vision_config.spatial_merge_size  # type: ignore[union-attr]
    height = next(h for h in range(math.isqrt(visual), 0, -1) if visual % h == 0)
    return [1, height * merge, visual // height * merge]


def _vision(
    model: PreTrainedModel, family: Family, shape: ModelShape, images: int, grid: list[int] | None, batch: int
) -> Callable[[], Any] | None:
    """A call of the vision encoder and projector on random pixels."""
    vision, tower = family.config.vision_config, shape.vision  # type: ignore[union-attr]
    if tower is None:
        return None
    options: dict[str, Any] = {}
    if grid is None:
        pixels = torch.randn(images, 3, vision.image_size, vision.image_size)
        if _layout(family).tiled:  # five tiles an image: a thumbnail and two by two
            whole = -(-images // 5)
            pixels = torch.randn(whole, 5, 3, vision.image_size, vision.image_size)
            options["image_sizes"] = torch.tensor([[2 * vision.image_size] * 2] * whole)
    else:
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(batch * grid[1] * grid[2], width)
        options["image_grid_thw"] = torch.tensor([grid] * batch)
    options = {name: value.to(model.device) for name, value in options.items()}
    pixels = pixels.to(model.device, model.dtype)
    return lambda: model.get_image_features(pixel_values=pixels, **options)


def from_example(loaded: LoadedModel, example: Example, batch: int) -> Workload:
    """``batch`` copies of one real question, as an evaluation would run it."""
    from prunekit.evaluation.batches import Batcher

    batcher, model = Batcher(loaded), loaded.model
    family = make_family(model)
    made = batcher.inputs([example] * batch)
    visual = family.find_visual(made["input_ids"], made)[0]
    processor = loaded.processor.image_processor
    pixels = processor(images=[example.image()] * batch, return_tensors="pt").to(model.device, dtype=model.dtype)
    shape, count = shape_of(model), int(visual.sum())
    return Workload(
        family=family,
        shape=shape,
        inputs=lambda: dict(made),
        vision=(lambda: model.get_image_features(**pixels)) if batcher.shares_features else None,
        visual=count,
        text=int(visual.numel()) - count,
        batch=batch,
        images=1 if shape.vision is None else shape.vision.images(count),
        places=visual.nonzero()[:, 0].cpu(),
    )
