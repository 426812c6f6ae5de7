"""vLLM's front end: a request's options are checked, its images get fewer placeholders, and the engine is told both.

What the engine needs travels beside the pixels as one more field of each image, JSON in bytes. It stands among the
request's processor options too, so that it is part of the keys of all caches: of processed images, of encoded ones, and
of prefixes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import CompilationMode, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.models.transformers.multimodal import MultiModalProcessingInfo, MultiModalProcessor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails

from prunekit.errors import PrunekitError
from prunekit.vllm.options import CONFIG_KEY, Served, kept, options_of_config, outline_family, reads_question

if TYPE_CHECKING:
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalKwargsItems
    from vllm.multimodal.parse import MultiModalDataItems
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    from prunekit.families import Family

FIELD = "prunekit_cut"
"""The field of an image that tells the engine how it is cut."""


@dataclasses.dataclass(frozen=True)
class CutOrder:
    """How one image is to be cut.

    Attributes:
        options: merged options of server and request; None for no cut.
        token: id of the placeholder.
        dense, keep: visual tokens of the image, and how many of them stay.
        before, after: ids of the prompt around the image, where a component reads them.
    """

    options: Mapping[str, object] | None
    token: int
    dense: int
    keep: int
    before: Sequence[int] | None = None
    after: Sequence[int] = ()

    def packed(self) -> torch.Tensor:
        """As bytes, uint8 [n]."""
        return torch.frombuffer(bytearray(json.dumps(dataclasses.asdict(self)).encode()), dtype=torch.uint8)

    @classmethod
    def unpacked(cls, field: torch.Tensor) -> CutOrder:
        """What ``packed`` made."""
        return cls(**json.loads(field.cpu().numpy().tobytes()))


class PrunekitProcessingInfo(MultiModalProcessingInfo):
    """What vLLM asks about the model before it runs: images alone are served."""

    def _get_supported_modalities(self) -> list[str]:
        return ["image"]


class PrunekitProcessor(MultiModalProcessor):
    """The processor of vLLM's Transformers backend, with fewer placeholders."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context = self.info.ctx.model_config
        if CONFIG_KEY in (context.get_multimodal_config().mm_processor_kwargs or {}):
            raise PrunekitError(
                "mm_processor_kwargs of a server must not hold 'prunekit': its options go to hf_overrides, "
                '\'{"architectures": [...], "prunekit": {...}}\''
            )
        family = _outline(context)
        self.served = Served(family, context.uses_mrope, options_of_config(context.hf_config, context.model))

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> Any:
        request = dict(inputs.hf_processor_mm_kwargs)
        options = self.served.options
        if CONFIG_KEY in request:
            options = self.served.merged(request[CONFIG_KEY])
        settings: dict[str, object] = {"options": options}
        if options is not None and reads_question(self.served.pruner(options)):
            settings["prompt"] = list(inputs.prompt)
        settings_json = json.dumps(settings, sort_keys=True)
        inputs = dataclasses.replace(inputs, hf_processor_mm_kwargs={**request, CONFIG_KEY: settings_json})
        return super().apply(inputs, timing_ctx)

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        settings, hf_kwargs = _taken(hf_kwargs)
        fields = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "image_replacement_sizes" in fields:
            texts = fields["image_replacement_ids"].split(fields["image_replacement_sizes"].tolist())
            fields[FIELD] = [self._order(ids, settings, hf_kwargs).packed() for ids in texts]
        elif settings["options"] is not None and any(mm_items.get_all_counts().values()):
            raise PrunekitError("images given as embeddings cannot be pruned: send pictures")
        return fields

    def _order(self, ids: torch.Tensor, settings: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> CutOrder:
        """How the image is cut whose placeholder expands to ``ids``."""
        token = self._placeholder(ids)
        place = ids.eq(token)
        dense, options = int(place.sum()), settings["options"]
        if options is None:
            return CutOrder(None, token, dense, dense)
        first = int(place.long().argmax())
        if not bool(place[first : first + dense].all()):
            raise PrunekitError(
                f"'{self.served.family.model_type}' cannot be served pruned: other tokens stand between the visual "
                "tokens of an image"
            )
        pruner = self.served.pruner(options)
        keep = min(dense, kept(pruner, self.served.family, dense))
        if "prompt" not in settings:
            return CutOrder(options, token, dense, keep)
        start, end = ids[:first].tolist(), ids[first + dense :].tolist()
        before, after = around_first(settings["prompt"], self._target(hf_kwargs), [*start, *end])
        return CutOrder(options, token, dense, keep, [*before, *start], [*end, *after])

    def _placeholder(self, ids: torch.Tensor) -> int:
        """The id of the visual tokens among those that one image expands to."""
        known = [token for token in self.served.family.token_ids if bool(ids.eq(token).any())]
        return known[0] if known else int(ids.mode().values)

    def _target(self, hf_kwargs: Mapping[str, object]) -> list[int]:
        """The ids that stand for one image in a prompt that is not expanded."""
        token = self.info.get_hf_processor(**hf_kwargs).image_token
        return [token] if isinstance(token, int) else self.info.get_tokenizer().encode(token, add_special_tokens=False)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        orders = hf_inputs.pop(FIELD, None)
        config = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        if orders is not None:
            hf_inputs[FIELD] = orders
            config[FIELD] = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
            patches = int(hf_inputs["num_image_patches"].sum())
            for name, value in hf_inputs.items():  # one row for each image, however many tiles it has
                if isinstance(value, torch.Tensor) and value.ndim < 3 and len(value) == len(orders) != patches:
                    config[name] = MultiModalFieldConfig.batched("image", keep_on_cpu=name == "num_image_patches")
        return config

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        replacements = []
        for item in out_mm_kwargs.get("image", ()):
            ids = item.pop("image_replacement_ids").data
            order = CutOrder.unpacked(item[FIELD].data)
            place = ids.eq(order.token)
            stays = ~place | (place.cumsum(0) <= order.keep)
            replacements.append(PromptUpdateDetails.select_token_id(ids[stays].tolist(), order.token))
        target = self._target(_taken(hf_processor_mm_kwargs)[1])
        return [PromptReplacement(modality="image", target=target, replacement=replacements.__getitem__)]


def _outline(context: ModelConfig) -> Family:
    """``outline_family`` where vLLM may have made a compiled class of the decoder's, which asks for a configuration."""
    eager = VllmConfig()
    eager.model_config, eager.compilation_config.mode = context, CompilationMode.NONE
    with set_current_vllm_config(eager):
        return outline_family(context.hf_config, context.trust_remote_code)


def _taken(hf_kwargs: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, object]]:
    """What ``apply`` noted among the processor's options, and the others."""
    others = dict(hf_kwargs)
    return json.loads(str(others.pop(CONFIG_KEY))), others


def around_first(prompt: Sequence[int], target: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids of a prompt before and behind its first image, each image being ``target`` in the prompt. Later images
    leave ``other``, what a placeholder expands to beside visual tokens."""
    parts: list[list[int]] = [[]]
    place, size = 0, len(target)
    while place < len(prompt):
        if list(prompt[place : place + size]) == list(target):
            parts.append([])
            place += size
        else:
            parts[-1].append(prompt[place])
            place += 1
    before, *rest = parts
    after = list(rest[0]) if rest else []
    for part in rest[1:]:
        after += [*other, *part]
    return before, after
