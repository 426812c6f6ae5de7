"""From examples to model inputs: prompts, padding, and image features computed once an image."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.models import LoadedModel

CACHED_BYTES = 2**30
"""Image features held at a time; those of the least recently used images go first."""


class Batcher:
    """Turns examples into inputs for ``forward`` and ``generate``.

    Where the model takes encoder outputs directly, each image goes through the vision tower once, however many
    questions it has; elsewhere the pixels are passed on.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        names = inspect.signature(loaded.model.forward).parameters
        self.shares_features = "mm_encoder_outputs" in names

    def prompt(self, example: Example) -> str:
        """The example's question in the model's chat template: its images, earlier turns, the question."""
        turns: list[dict[str, Any]] = []
        for question, answer in example.history:
            turns.append({"role": "user", "content": [{"type": "text", "text": question}]})
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        turns.append({"role": "user", "content": [{"type": "text", "text": example.question}]})
        turns[0]["content"] = [{"type": "image"} for _ in example.image_ids] + turns[0]["content"]
        try:
            return self.loaded.processor.apply_chat_template(turns, add_generation_prompt=True)
        except ValueError as error:
            raise PrunekitError(f"model '{self.loaded.name}': {str(error).splitlines()[0]}") from None

    def batches(self, examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
        """Examples in groups of ``size``, those of like length together, so that little is padded."""
        tokenizer = getattr(self.loaded.processor, "tokenizer", self.loaded.processor)
        lengths = {e.id: len(tokenizer(self.prompt(e)).input_ids) for e in examples}
        ordered = sorted(examples, key=lambda e: (lengths[e.id], e.id))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Padded model inputs on the model's device."""
        model = self.loaded.model
        images = [e.images() for e in examples]
        encoded = self.loaded.processor(
            images=images, text=[self.prompt(e) for e in examples], padding=True, return_tensors="pt"
        )
        made = dict(encoded.to(model.device, dtype=model.dtype))
        if self.shares_features and "pixel_values" in made:
            self._share(made, examples)
        return made

    def _share(self, made: dict[str, Any], examples: Sequence[Example]) -> None:
        """Replace the pixels by features, computing those of images not seen lately."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        shown = [image_id for example in examples for image_id in example.image_ids]
        missing = {image_id: row for row, image_id in enumerate(shown) if image_id not in self._features}
        if missing:
            rows = sorted(missing.values())
            for row, feature in zip(rows, self._encode(made, rows), strict=True):
                self._features[shown[row]] = feature
        features = []
        for image_id in shown:
            self._features.move_to_end(image_id)
            features.append(self._features[image_id])
        held = sum(feature.nbytes for feature in self._features.values())
        while held > CACHED_BYTES and len(self._features) > len(shown):
            held -= self._features.popitem(last=False)[1].nbytes
        for name in ("pixel_values", "image_sizes"):
            made.pop(name, None)
        made["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}

    def _encode(self, made: dict[str, Any], rows: list[int]) -> list[torch.Tensor]:
        """Projected features [n, D] of a batch's images, those of the given numbers."""
        pixels, extra = made["pixel_values"], {}
        if (grids := made.get("image_grid_thw")) is not None:  # patches of all images in one long row
            pixels = torch.cat([pixels.split(grids.prod(-1).tolist())[row] for row in rows])
            extra["image_grid_thw"] = grids[rows]
        else:
            pixels = pixels[rows]
            if "image_sizes" in made:
                extra["image_sizes"] = made["image_sizes"][rows]
        with torch.inference_mode():
            found = self.loaded.model.get_image_features(pixel_values=pixels, **extra, return_dict=True)
        return [feature.clone() for feature in found.pooler_output]
