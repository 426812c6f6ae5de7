"""From examples to model inputs: prompts, padding, and image features computed once an image."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from prunekit.data.example import Example
from prunekit.data.videos import clip_inputs
from prunekit.errors import RowError
from prunekit.evaluation.faults import out_of_memory
from prunekit.families import support_of
from prunekit.models import LoadedModel
from prunekit.prompts import prompt_for, special_tokens
from prunekit.pruning.pruner import Pruner

if TYPE_CHECKING:
    from transformers import ProcessorMixin
    from transformers.modeling_outputs import BaseModelOutputWithPooling

CACHED_BYTES = 2**30
"""Image features held at a time; those of images without further questions go first, then the least recently used."""

_KINDS = ({"image"}, {"video"}, {"image", "video"})
"""What the examples of one batch show: some processors take no batch in which examples differ."""


class Batcher:
    """Turns examples into inputs for ``forward`` and ``generate``.

    Where the model takes encoder outputs directly, each image goes through the vision tower once, however many
    questions it has; elsewhere the pixels are passed on.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._to_come: Counter[str] = Counter()
        self._stacked = False
        names = inspect.signature(loaded.model.forward).parameters
        row = support_of(getattr(loaded.model.config, "model_type", ""))
        self.shares_features = row.takes_features and "mm_encoder_outputs" in names

    def prompt(self, example: Example) -> str:
        """The example's question in the model's chat template, or as ``model.prompt`` has it."""
        return prompt_for(self.loaded, example)

    def batches(self, examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
        """Examples in groups of ``size``, those of like length together, so that little is padded."""
        tokenizer = getattr(self.loaded.processor, "tokenizer", self.loaded.processor)
        lengths = {e.id: len(tokenizer(self.prompt(e)).input_ids) for e in examples}
        ordered = sorted(examples, key=lambda e: (lengths[e.id], e.id))
        self._to_come = Counter(image_id for e in examples for image_id in e.image_ids)
        kinds = [[e for e in ordered if set(e.media) == kind] for kind in _KINDS]  # no batch mixes kinds
        for group in kinds:
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def inputs(self, examples: Sequence[Example], pruner: Pruner | None = None) -> dict[str, Any]:
        """Padded model inputs on the model's device, for a run under ``pruner``: one that looks into the vision encoder
        needs the pixels. Raises RowError if an example cannot be used."""
        model = self.loaded.model
        encoded = self.encoded(examples)
        pace = encoded.get("second_per_grid_ts")
        tensors = dict(encoded.to(model.device, dtype=model.dtype))
        if pace is not None:  # positions are computed from it and rounded down: bfloat16 would move frames
            tensors["second_per_grid_ts"] = pace
        single = all(example.media == ("image",) for example in examples)
        if single and self.shares(pruner) and "pixel_values" in tensors and _one_an_example(tensors, len(examples)):
            tensors["mm_encoder_outputs"] = {"image": self._share(tensors, examples)}
        return tensors

    def encoded(self, examples: Sequence[Example]) -> Any:
        """The processor's output for a batch: pixels and padded prompts. Raises RowError if it rejects an example."""
        images, clips = [e.images() for e in examples], [clip for e in examples if (clip := e.clip()) is not None]
        if any(images) and clips and (input_name := _shared_input(self.loaded.processor)):
            raise RowError(
                f"example '{examples[0].id}': the model's processor takes images or a video, not both: it would write "
                f"both as {input_name}"
            )
        prompts = [self.prompt(e) for e in examples]
        options: dict[str, Any] = special_tokens(self.loaded.processor, prompts)
        if any(images):
            options["images"] = images
        if clips:
            options |= clip_inputs(clips)
        try:
            return self.loaded.processor(text=prompts, padding=True, return_tensors="pt", **options)
        except (ValueError, RuntimeError) as error:  # a picture too narrow, videos of unequal length in one batch
            if out_of_memory(error):
                raise
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images[0])
            which = f"example '{examples[0].id}'" + (f" ({sizes} pixels)" if sizes else "")
            reason = " ".join(str(error).split())[:200]
            raise RowError(f"{which}: the model's processor rejects it: {reason}") from None

    def forget(self) -> None:
        """Let go of all image features: what comes next shows other images."""
        self._features.clear()

    def shares(self, pruner: Pruner | None) -> bool:
        """Whether images are encoded once, outside the model's forward pass."""
        return self.shares_features and not (pruner is not None and pruner.needs_pixels)

    def _share(self, tensors: dict[str, torch.Tensor], examples: Sequence[Example]) -> BaseModelOutputWithPooling:
        """The features of the images, computed for those not seen lately; the pixels are taken out."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        shown = [image_id for example in examples for image_id in example.image_ids]
        missing = {image_id: row for row, image_id in enumerate(shown) if image_id not in self._features}
        if missing:
            rows = sorted(missing.values())
            for row, feature in zip(rows, self._encode(tensors, rows), strict=True):
                self._features[shown[row]] = feature
        features = []
        for image_id in shown:
            self._features.move_to_end(image_id)
            features.append(self._features[image_id])
        self._to_come.subtract(shown)
        self._make_room(set(shown))
        for name in ("pixel_values", "image_sizes"):
            tensors.pop(name, None)
        pooled: Any = torch.stack(features) if self._stacked else features
        return BaseModelOutputWithPooling(pooler_output=pooled)

    def _make_room(self, current: set[str]) -> None:
        """Forget features beyond ``CACHED_BYTES``, those of the ``current`` batch excepted."""
        size = sum(feature.nbytes for feature in self._features.values())
        others = (image for image in list(self._features) if image not in current)
        for image in sorted(others, key=lambda image: self._to_come[image] > 0):  # stable: by last use within each half
            if size <= CACHED_BYTES:
                return
            size -= self._features.pop(image).nbytes

    def _encode(self, tensors: dict[str, torch.Tensor], rows: list[int]) -> list[torch.Tensor]:
        """Projected features [n, D] of a batch's images, those of the given numbers."""
        pixels, extra = tensors["pixel_values"], {}
        if (grids := tensors.get("image_grid_thw")) is not None:  # patches of all images in one long row
            pixels = torch.cat([pixels.split(grids.prod(-1).tolist())[row] for row in rows])
            extra["image_grid_thw"] = grids[rows]
        else:
            pixels = pixels[rows]
            if "image_sizes" in tensors:
                extra["image_sizes"] = tensors["image_sizes"][rows]
        with torch.inference_mode():
            output = self.loaded.model.get_image_features(pixel_values=pixels, **extra, return_dict=True)
        self._stacked = isinstance(output.pooler_output, torch.Tensor)
        return [feature.clone() for feature in output.pooler_output]


def _shared_input(processor: ProcessorMixin) -> str | None:
    """The model input that images and videos would both be, None where each has its own."""
    names = [getattr(processor, f"{kind}_processor").model_input_names for kind in ("image", "video")]
    return next((name for name in names[0] if name in names[1]), None)


def _one_an_example(tensors: dict[str, torch.Tensor], count: int) -> bool:
    """Whether the pixels of a batch are one entry an example; processors that cut images into tiles make several."""
    grids = tensors.get("image_grid_thw")
    return len(tensors["pixel_values"] if grids is None else grids) == count
