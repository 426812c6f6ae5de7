"""The model that vLLM runs: any LVLM of its Transformers backend, whose images reach the language model pruned.

With M-RoPE nobody knows before the encoder which tokens stay, but where the text goes on does not depend on it. So all
placeholders of an image get the position of its first, and each row of the embeddings carries in three more columns how
far from there its token stands. They are taken off when embeddings enter the model, and added to the positions. What
Qwen3-VL adds to its first decoder layers (deepstack) travels the same way.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from vllm.model_executor.models.transformers import MultiModalDummyInputsBuilder, TransformersMultiModalForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import PlaceholderRange

from prunekit.errors import PrunekitError
from prunekit.families import family_of
from prunekit.vllm.cut import ImageCut, Surroundings
from prunekit.vllm.options import REMEMBERED, Served, options_of_config
from prunekit.vllm.processor import FIELD, CutOrder, PrunekitProcessingInfo, PrunekitProcessor

EXACT = 256
"""The largest whole number up to which bfloat16 holds all."""


@MULTIMODAL_REGISTRY.register_processor(
    PrunekitProcessor, info=PrunekitProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class PrunekitForConditionalGeneration(TransformersMultiModalForCausalLM):
    """An LVLM with prunekit's input-site methods, as its config and its requests ask for them."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        parallel, config = vllm_config.parallel_config, vllm_config.model_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise PrunekitError("tensor and pipeline parallelism are not served pruned: start a server for each GPU")
        if config.is_moe:
            raise PrunekitError(f"model type '{self.config.model_type}' cannot be served pruned: mixture of experts")
        self.served = Served(family_of(self.model), config.uses_mrope, options_of_config(self.config, config.model))
        self._cuts: dict[str, ImageCut] = {}
        self._width = self.text_config.hidden_size
        self._layers = _deepstack_layers(self.config)
        self._columns = (3 if config.uses_mrope else 0) + self._width * self._layers
        if self._layers and not config.enforce_eager:
            raise PrunekitError(
                f"'{self.config.model_type}' is served pruned with enforce_eager alone (--enforce-eager)"
            )
        size = vllm_config.scheduler_config.max_num_batched_tokens
        device = torch.get_default_device()
        self._carried = torch.zeros(size if self._columns else 0, self._columns, device=device)
        self._clean = True
        for number in range(self._layers):
            self.served.family.layers[number].register_forward_hook(self._deepstack_hook(number))

    def _create_hf_to_vllm_mapper(self) -> None:
        """Weights have the names of transformers' own class, which ``architectures`` no longer mentions."""
        named = self.config.architectures
        own = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(self.config.model_type)
        self.config.architectures = [*named, own] if isinstance(own, str) else named
        try:
            super()._create_hf_to_vllm_mapper()
        finally:
            self.config.architectures = named

    # -- images --------------------------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: object) -> list[torch.Tensor]:
        """What stays of each image, [K, D] with the columns that it carries."""
        if FIELD not in kwargs:
            if any("pixel" in name or "embeds" in name for name in kwargs):
                raise PrunekitError("images without an order how to cut them")
            return []
        return [self._embed_image(order, item) for order, item in _items(kwargs)]

    def _embed_image(self, order: CutOrder, item: dict[str, Any]) -> torch.Tensor:
        if order.options is None:
            tokens_ND, deepstack = self._encode(item)
            index_K = torch.arange(len(tokens_ND), device=tokens_ND.device)
        else:
            cut = self._cut(order.options)
            with cut.watching():
                tokens_ND, deepstack = self._encode(item)
            tokens_ND, index_K = cut(tokens_ND, self._around(order))
        if len(tokens_ND) != order.keep:
            raise PrunekitError(f"an image of {order.keep} announced tokens came to {len(tokens_ND)}")
        columns = [tokens_ND]
        if self.served.mrope:
            columns.append(self._offsets(order, item)[index_K.cpu()].to(tokens_ND))
        columns += [layer_ND[index_K] for layer_ND in deepstack]
        return torch.cat(columns, dim=1)

    def _cut(self, options: Mapping[str, object]) -> ImageCut:
        key = json.dumps(options, sort_keys=True)
        if key not in self._cuts:
            if len(self._cuts) >= REMEMBERED:
                self._cuts.clear()
            self._cuts[key] = ImageCut(self.served.pruner(options), self.served.family)
        return self._cuts[key]

    def _encode(self, item: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Visual tokens [N, D] of one image, and what goes to the first decoder layers, [N, D] each."""
        name = "pixel_values" if "pixel_values" in item else "image_patches"
        pixels = item[name]
        others = {key: value.to(pixels.device) if isinstance(value, torch.Tensor) else value
                  for key, value in item.items() if key not in (name, "num_image_patches")}  # fmt: skip
        output = self.model.get_image_features(pixels, return_dict=True, **others)
        tokens = _whole(output.pooler_output)
        deepstack = [_whole(features) for features in getattr(output, "deepstack_features", None) or ()]
        if len(deepstack) != self._layers:
            raise PrunekitError(f"{len(deepstack)} deepstack features where the config names {self._layers}")
        return tokens, deepstack

    def _around(self, order: CutOrder) -> Surroundings | None:
        if order.before is None:
            return None
        ids_S = torch.tensor([*order.before, *[order.token] * order.dense, *order.after])
        place_S = torch.arange(len(ids_S))
        visual_S = (place_S >= len(order.before)) & (place_S < len(order.before) + order.dense)
        device = self._carried.device
        words_S = ids_S.masked_fill(visual_S, 0).to(device)
        embeds_SD = self.get_language_model().embed_input_ids(words_S)
        return Surroundings(ids_S.to(device), visual_S.to(device), embeds_SD)

    # -- positions -----------------------------------------------------------------------------------------------

    def _offsets(self, order: CutOrder, item: Mapping[str, Any]) -> torch.Tensor:
        """How far each token of an image stands from its first, [N, 3]."""
        feature = _Feature({"image_grid_thw": _Element(item["image_grid_thw"][0].cpu())}, order.dense)
        positions_3N, _ = super().get_mrope_input_positions([order.token] * order.dense, [feature])  # type: ignore[list-item]
        offsets_N3 = (positions_3N - positions_3N[:, :1]).T
        if int(offsets_N3.max()) > EXACT and self.model_config.dtype != torch.float32:
            raise PrunekitError(f"an image of more than {EXACT} rows or columns of tokens needs dtype=float32")
        return offsets_N3

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """The positions [3, S] of a prompt in which an image's placeholders all have that of its first token."""
        dense: list[int] = []
        stays: list[int] = []  # the dense place of each token of the prompt
        firsts: list[tuple[slice, int]] = []
        features, place = [], 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            order, span = CutOrder.unpacked(feature.data[FIELD].data), feature.mm_position
            embeds = [True] * span.length if span.is_embed is None else span.is_embed.tolist()
            first = span.offset + embeds.index(True)
            for token in input_tokens[place:first]:
                stays.append(len(dense))
                dense.append(token)
            start = len(dense) - (first - span.offset)
            firsts.append((slice(len(stays), len(stays) + order.keep), len(dense)))
            stays += range(len(dense), len(dense) + order.keep)
            dense += [order.token] * order.dense
            place = first + order.keep
            mask = torch.tensor([*embeds[: first - span.offset], *[True] * order.dense, *embeds[place - span.offset :]])
            position = PlaceholderRange(offset=start, length=len(mask), is_embed=mask)
            features.append(dataclasses.replace(feature, mm_position=position))
        for token in input_tokens[place:]:
            stays.append(len(dense))
            dense.append(token)
        positions_3S, delta = super().get_mrope_input_positions(dense, features)
        kept_3S = positions_3S[:, stays].clone()
        for places, first in firsts:
            kept_3S[:, places] = positions_3S[:, first : first + 1]
        return kept_3S, delta + len(dense) - len(input_tokens)

    # -- the language model --------------------------------------------------------------------------------------

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not self._clean:
            self._carried.zero_()
            self._clean = True
        if self._columns and multimodal_embeddings is not None and len(multimodal_embeddings):
            rows = torch.cat(list(multimodal_embeddings))
            assert is_multimodal is not None
            places = is_multimodal.to(self._carried.device).nonzero()[:, 0]
            self._carried[places] = rows[:, self._width :].to(self._carried.dtype)
            self._clean, multimodal_embeddings = False, [rows[:, : self._width]]
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        if self.served.mrope:
            positions = positions + self._carried[: positions.shape[-1], :3].T.to(positions.dtype)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def _deepstack_hook(self, number: int) -> Any:
        start = (3 if self.served.mrope else 0) + number * self._width

        def add(layer: nn.Module, args: object, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            carried = self._carried[: hidden.shape[1], start : start + self._width]
            hidden = hidden + carried.to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add


@dataclasses.dataclass(frozen=True)
class _Element:
    data: torch.Tensor


class _Feature:
    """An image alone, as ``get_mrope_input_positions`` reads it."""

    modality = "image"

    def __init__(self, data: Mapping[str, _Element], length: int) -> None:
        self.data, self.mm_position = data, PlaceholderRange(offset=0, length=length)


def _whole(features: Any) -> torch.Tensor:
    """The features of one image as rows [N, D], however the model parts them."""
    joined = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
    return joined.reshape(-1, joined.shape[-1])


def _deepstack_layers(config: Any) -> int:
    return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


def _items(kwargs: Mapping[str, Any]) -> Iterable[tuple[CutOrder, dict[str, Any]]]:
    """The images of one call, each with its own share of the fields."""
    orders, others = kwargs[FIELD], {key: value for key, value in kwargs.items() if key != FIELD}
    patches = [int(n) for n in others["num_image_patches"].flatten()]
    start = 0
    for number, (field, count) in enumerate(zip(orders, patches, strict=True)):
        yield (
            CutOrder.unpacked(field),
            {key: _share(value, number, len(orders), start, count, sum(patches)) for key, value in others.items()},
        )
        start += count


def _share(value: Any, number: int, images: int, start: int, count: int, total: int) -> Any:
    """The part of a field that belongs to one of several images."""
    if isinstance(value, list):
        return value[number][None] if len(value) == images else value
    if isinstance(value, torch.Tensor):
        axis = 1 if value.ndim > 1 and value.shape[0] != total and value.shape[1] == total else 0
        if value.shape[axis] == total:
            return value.narrow(axis, start, count)
        if value.shape[0] == images:
            return value[number : number + 1]
    return value
