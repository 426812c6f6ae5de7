"""What is known of model families, in one place: where a loaded model keeps its decoder, its placeholders, its tower.

Everything is found from the model itself: token ids from its config, modules from its structure. A family that fits
the generic path is one line in ``VERIFIED``; an odd one registers a subclass of ``Family`` for its model type.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from prunekit.errors import PrunekitError

VERIFIED = ("llava", "llava_next", "qwen2_vl")
"""Model types whose removal is held equal to masking by the tests."""

RECURRENT = ("linear_attention", "conv", "mamba", "recurrent")
"""Layer types that mix tokens by a state or a convolution instead of attention."""

TOKEN_ID_KEYS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


class Family:
    """One loaded model, seen through what prunekit needs of it. Subclass for a family with a shape of its own."""

    token_axis: ClassVar[int] = 1
    """Axis of the tokens in the hidden states between layers; the batch is the axis before it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.config = getattr(self.model, "config", None)
        self.model_type: str = getattr(self.config, "model_type", type(self.model).__name__)
        self.core = self._core()
        self.decoder = self._decoder()
        self.layers: nn.ModuleList = self._layers()
        self.attentions = [self._attention(layer) for layer in self.layers]
        # Read once: a tap gives its module another name for as long as it is on.
        config = next((module.config for module in self.attentions if module is not None), self.text_config)
        self.implementation: str = getattr(config, "_attn_implementation", None) or "eager"
        self.key_layers = self._key_layers()
        names = inspect.signature(type(self.layers[0]).forward).parameters
        self.layer_arguments: tuple[str, ...] = tuple(names)[1:]
        self.touches_hidden_between_layers: bool = "deepstack" in inspect.getsource(type(self.decoder).forward)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.config.get_text_config(decoder=True)  # type: ignore[union-attr]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the placeholders that stand for visual tokens in ``input_ids``."""
        found = (getattr(self.config, key, None) for key in TOKEN_ID_KEYS)
        return tuple(dict.fromkeys(i for i in found if isinstance(i, int)))

    @property
    def three_dimensional_positions(self) -> bool:
        """Whether positions are (time, row, column) triples (M-RoPE)."""
        parameters = getattr(self.text_config, "rope_parameters", None) or {}
        return "mrope_section" in parameters

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's rotary embedding: (hidden, position_ids) -> (cos, sin)."""
        return getattr(self.decoder, "rotary_emb", None)

    @property
    def vision_tower(self) -> nn.Module | None:
        """The vision encoder."""
        for name in ("vision_tower", "visual", "vision_model", "vision_encoder"):
            if isinstance(tower := getattr(self.core, name, None), nn.Module):
                return tower
        return None

    @property
    def projector(self) -> nn.Module | None:
        """The module between vision encoder and decoder."""
        for owner in (self.core, self.vision_tower):
            for name in ("multi_modal_projector", "connector", "merger"):
                if isinstance(module := getattr(owner, name, None), nn.Module):
                    return module
        return None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches where every image has the same, else None."""
        vision = getattr(self.config, "vision_config", None)
        if self.model_type != "llava" or not getattr(vision, "patch_size", None):
            return None
        side = vision.image_size // vision.patch_size  # type: ignore[union-attr]
        return side, side

    def visual_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Bool [B, S]: where the placeholders stand."""
        mask = input_ids == self.token_ids[0]
        for token in self.token_ids[1:]:
            mask = mask | (input_ids == token)
        return mask

    def find_visual(self, input_ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Bool [B, S]: the visual tokens of a forward pass of the core with keyword arguments ``inputs``."""
        return self.visual_mask(input_ids)

    def adjust_query(self, layer: int, query: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Correct a query [B, H, M, d] that the model scaled by its slot instead of its true position [B, M]."""
        return query

    def attention_function(self, layer: int) -> Callable[..., Any]:
        """The attention function that layer would call by itself."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        module = self.attentions[layer]
        if module is None:
            kind = type(self.layers[layer]).__name__
            raise PrunekitError(f"{self.model_type}: {kind} {layer} does not use transformers' attention interface")
        code = sys.modules[type(module).__module__]
        eager = getattr(code, "eager_attention_forward", None)
        table = getattr(code, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        return table.get_interface(self.implementation, eager)

    @property
    def input_embeddings(self) -> nn.Module | None:
        """The embedding that sees token ids, for models whose ``generate`` hands the decoder embeddings alone."""
        return None

    def _key_layers(self) -> list[int]:
        """For each layer the one whose keys it attends to: itself, or an earlier one of its type that shares its own."""
        found: list[int] = []
        last: dict[Any, int] = {}
        for index, module in enumerate(self.attentions):
            kind = getattr(module, "layer_type", None)
            if not getattr(module, "is_kv_shared_layer", False):
                last[kind] = index
            found.append(last.get(kind, index))
        return found

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention rows to read (a recurrent or convolution layer has none)."""
        return self.attentions[layer] is not None

    def takes_padding_mask(self, layer: int) -> bool:
        """Whether a layer's mask is 2-D padding, as recurrent and convolution layers and flash attention want it."""
        kinds = getattr(self.text_config, "layer_types", None)
        return self.implementation.startswith("flash") or bool(kinds and kinds[layer] in RECURRENT)

    def _core(self) -> nn.Module:
        base = getattr(self.model, "base_model", None)
        if not isinstance(base, nn.Module) or not self.token_ids:
            raise PrunekitError(f"model type '{self.model_type}' has no image tokens: not a vision-language model?")
        return base

    def _decoder(self) -> nn.Module:
        getter = getattr(self.model, "get_decoder", None)
        return self._decoder_of(getter() if getter is not None else None, getattr(self.core, "language_model", None))

    def _decoder_of(self, *found_first: nn.Module | None) -> nn.Module:
        found = list(found_first)
        while found:  # down through wrappers: a language model with a head, a decoder inside a model
            module = found.pop(0)
            if isinstance(getattr(module, "layers", None), nn.ModuleList):
                return module  # type: ignore[return-value]
            inner = (getattr(module, name, None) for name in ("model", "decoder", "text_model"))
            found += [m for m in inner if isinstance(m, nn.Module) and m is not self.model]
        raise PrunekitError(f"model type '{self.model_type}': no decoder layers found in {type(self.model).__name__}")

    def _layers(self) -> nn.ModuleList:
        return self.decoder.layers  # type: ignore[return-value]

    def _attention(self, layer: nn.Module) -> nn.Module | None:
        return next((m for m in layer.modules() if hasattr(m, "config") and _uses_interface(type(m))), None)


@functools.cache
def _uses_interface(kind: type[nn.Module]) -> bool:
    """Whether a module hands its queries and keys to transformers' attention interface."""
    try:
        return "attention_interface(" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


class QFormerLanguageModel(Family):
    """BLIP-2 and InstructBLIP: ``generate`` of the whole embeds the prompt itself and calls the language model's."""

    def _core(self) -> nn.Module:
        if self.config.is_encoder_decoder or not self.token_ids:  # type: ignore[union-attr]
            raise PrunekitError(f"model type '{self.model_type}' with an encoder-decoder: its image tokens never reach a decoder")
        return self._decoder_of(self.model.language_model)  # type: ignore[arg-type]

    @property
    def input_embeddings(self) -> nn.Module | None:
        return self.model.get_input_embeddings()  # type: ignore[operator]


class Kosmos(Family):
    """KOSMOS-2 and 2.5: visual positions come as ``image_embeds_position_mask``, not as token ids."""

    def _core(self) -> nn.Module:
        return self.model.text_model  # type: ignore[return-value]

    def find_visual(self, input_ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        mask = inputs.get("image_embeds_position_mask")
        return torch.zeros_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()


class Gemma3n(Family):
    """Gemma 3n: AltUp carries several streams, hidden states are [streams, B, S, D]."""

    token_axis = 2


class Llama4(Family):
    """Llama 4: layers without rotary embedding scale queries by the logarithm of their place in the sequence."""

    def adjust_query(self, layer: int, query: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        module: Any = self.attentions[layer]
        if module.use_rope or not module.attn_temperature_tuning:
            return query

        def scale(places: torch.Tensor) -> torch.Tensor:
            return torch.log1p(torch.floor((places.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

        slots = torch.arange(query.shape[2], device=query.device)
        return (query * (scale(positions) / scale(slots))[:, None, :, None]).to(query.dtype)


FAMILIES: dict[str, type[Family]] = {
    "blip-2": QFormerLanguageModel,
    "gemma3n": Gemma3n,
    "instructblip": QFormerLanguageModel,
    "instructblipvideo": QFormerLanguageModel,
    "kosmos-2": Kosmos,
    "kosmos-2.5": Kosmos,
    "llama4": Llama4,
}
"""Model types that need more than the generic path."""


def make_family(model: nn.Module) -> Family:
    """A loaded model through its family's adapter, or the generic one."""
    inner = unwrap(model)
    return FAMILIES.get(getattr(getattr(inner, "config", None), "model_type", ""), Family)(model)


def family_of(model: nn.Module) -> Family:
    """The family of a loaded model; raises, naming the model type, where pruning it is not known to be exact."""
    family = make_family(model)
    model_type = family.model_type
    if model_type not in VERIFIED and not os.environ.get("PK_ANY"):
        raise PrunekitError(f"model type '{model_type}' is not supported yet; supported: {', '.join(VERIFIED)}")
    layer_types = set(getattr(family.text_config, "layer_types", None) or ["full_attention"])
    if not os.environ.get("PK_ANY") and (odd := layer_types - {"full_attention"}):
        raise PrunekitError(f"model type '{model_type}': {', '.join(sorted(odd))} layers are not supported yet")
    return family
