"""What is run: a prompt with its visual tokens as features, and the pixels that they would come from."""

from __future__ import annotations

import functools
import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from prunekit.cost.reading import shape_of
from prunekit.cost.shapes import ModelShape
from prunekit.errors import PrunekitError
from prunekit.families import SUPPORT, Family, make_family, support_of
from prunekit.families.support import PatchLayout
from prunekit.views.media import VIDEO_TYPE

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
        frames: frames of the prompt's video, None without one.
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
    frames: int | None = None

    @property
    def before(self) -> int:
        """Text tokens ahead of the first visual one."""
        return int(self.places[0])


def synthetic(model: PreTrainedModel, visual: int, text: int, batch: int, frames: int | None = None) -> Workload:
    """``batch`` like prompts: text, ``visual`` placeholders with random features, text.

    Args:
        frames: frames of the video that the visual tokens are made of; None: they are an image's.

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
    kind = "image" if frames is None else "video"
    token = family.token_ids[0] if frames is None else _video_token(family)
    ids[:, places] = token
    features = torch.randn(visual, family.text_config.hidden_size, generator=generator).to(device, model.dtype)
    tensors: dict[str, Any] = {"input_ids": ids.to(device)}
    shape = shape_of(model)
    grid = _grid(family, visual, 1 if frames is None or shape.vision is None else -(-frames // shape.vision.joined))
    if grid is not None:
        tensors |= {
            f"{kind}_grid_thw": torch.tensor([grid] * batch, device=device),
            "mm_token_type_ids": (ids == token).int().to(device) * (1 if frames is None else VIDEO_TYPE),
        }

    def inputs() -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        stacked = kind == "video" and grid is None  # LLaVA-OneVision's videos are all of one length
        outputs: Any = features.expand(batch, -1, -1) if stacked else [features] * batch
        return {**tensors, "mm_encoder_outputs": {kind: BaseModelOutputWithPooling(pooler_output=outputs)}}

    images = 1 if shape.vision is None else shape.vision.images(visual)
    if frames is None:
        vision = _vision(model, family, shape, images * batch, grid, batch)
    else:
        vision = _video(model, family, frames, grid, batch)
    return Workload(family, shape, inputs, vision, visual, text, batch, images, places, frames)


def _video_token(family: Family) -> int:
    named = (getattr(family.config, name, None) for name in ("video_token_id", "video_token_index"))
    return next(token for token in named if token is not None)


def _layout(family: Family) -> PatchLayout:
    layout = support_of(family.model_type).patches
    assert layout is not None  # known for all whose features can be made up
    return layout


def _grid(family: Family, visual: int, steps: int = 1) -> list[int] | None:
    """``steps`` pictures of ``visual`` merged patches in all, as square as they divide, for models that ask for it."""
    if not _layout(family).packed:
        return None
    merge, each = family.config.vision_config.spatial_merge_size, visual // steps  # type: ignore[union-attr]
    height = next(h for h in range(math.isqrt(each), 0, -1) if each % h == 0)
    return [steps, height * merge, each // height * merge]


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


def _video(
    model: PreTrainedModel, family: Family, frames: int, grid: list[int] | None, batch: int
) -> Callable[[], Any]:
    """A call of the vision encoder and projector on the frames of random videos."""
    vision = family.config.vision_config  # type: ignore[union-attr]
    options: dict[str, Any] = {}
    if grid is None:
        pixels = torch.randn(batch, frames, 3, vision.image_size, vision.image_size)
    else:
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(batch * math.prod(grid), width)
        options["video_grid_thw"] = torch.tensor([grid] * batch, device=model.device)
    pixels = pixels.to(model.device, model.dtype)
    return lambda: model.get_video_features(pixel_values_videos=pixels, **options)


def noise_video(frames: int, side: int = 448) -> Example:
    """A question about a video of so many square frames of noise."""
    from prunekit.data.example import Example
    from prunekit.data.pictures import Picture
    from prunekit.data.videos import Sampling, Video

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (frames, side, side, 3), dtype=torch.uint8, generator=generator).numpy()
    pictures = []
    for frame in noise:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG", compress_level=1)
        pictures.append(Picture(file.getvalue(), "bench.frames"))
    video = Video(tuple(pictures), "bench.frames", Sampling(frames))
    return Example("noise", video.name, "noise", "What happens in the video?", ("noise",), video=video)


def from_example(loaded: LoadedModel, example: Example, batch: int) -> Workload:
    """``batch`` copies of one real question, as an evaluation would run it."""
    from prunekit.evaluation.batches import Batcher

    batcher, model = Batcher(loaded), loaded.model
    family = make_family(model)
    tensors = batcher.inputs([example] * batch)
    visual = family.find_visual(tensors["input_ids"], tensors)[0]
    clip, vision = example.clip(), None
    if clip is not None:
        if set(example.media) == {"video"} and batcher.shares_features:
            vision = _take_video_out(model, tensors)
    elif batcher.shares_features:
        processor = loaded.processor.image_processor
        pixels = processor(images=[example.image()] * batch, return_tensors="pt").to(model.device, dtype=model.dtype)
        vision = functools.partial(model.get_image_features, **pixels)
    shape, count = shape_of(model), int(visual.sum())
    return Workload(
        family=family,
        shape=shape,
        inputs=lambda: dict(tensors),
        vision=vision,
        visual=count,
        text=int(visual.numel()) - count,
        batch=batch,
        images=1 if shape.vision is None else shape.vision.images(count),
        places=visual.nonzero()[:, 0].cpu(),
        frames=None if clip is None else len(clip.frames),
    )


def _take_video_out(model: PreTrainedModel, tensors: dict[str, Any]) -> Callable[[], Any] | None:
    """The call that encodes the videos of model inputs, whose outputs take the place of their pixels; None where frames
    come as something else than a video's pixels."""
    if "pixel_values_videos" not in tensors:
        return None
    taken = {"pixel_values_videos": tensors.pop("pixel_values_videos")}
    taken |= {name: tensors[name] for name in ("video_grid_thw",) if name in tensors}
    encode = functools.partial(model.base_model.get_video_features, **taken)
    with torch.inference_mode():
        tensors["mm_encoder_outputs"] = {"video": encode(return_dict=True)}
    return encode
