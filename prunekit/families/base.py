"""The generic view of a loaded model: where it keeps its decoder, its placeholders, its tower."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.implementation import implementation_of, untapped
from prunekit.families.wrappers import unwrap, unwrapped
from prunekit.tensors.sequences import CompactSequence

RECURRENT = ("linear_attention", "conv", "mamba", "recurrent")
"""Layer types that mix tokens by a state or a convolution instead of attention."""

TOKEN_ID_KEYS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def is_mask_name(name: str) -> bool:
    """Whether an argument's name says that it is a mask over the decoder's own sequence.

    Only None, which has no shape, has to go by its name.
    """
    words = name.split("_")
    return "mask" in words and "encoder" not in words and "cross" not in words


class Family:
    """One loaded model, seen through what prunekit needs of it. Subclass for a family with a shape of its own.

    Args:
        model: as loaded, wrappers included.
        fixed_grid: whether every image has the same rows and columns of patches, one visual token each.
    """

    token_axis: ClassVar[int] = 1
    """Axis of the tokens in the hidden states between layers; the batch is the axis before it."""

    single_steps: ClassVar[bool] = False
    """Whether a pruned cache can be continued by one token at a time only."""

    stacked: ClassVar[bool] = False
    """Whether several hidden states stand for a token, so that tokens cannot be merged."""

    def __init__(self, model: nn.Module, fixed_grid: bool = False) -> None:
        self.model = unwrap(model)
        self.fixed_grid = fixed_grid
        self.config = getattr(self.model, "config", None)
        self.model_type: str = getattr(self.config, "model_type", type(self.model).__name__)
        self.core = unwrapped(self._core())
        self.decoder = unwrapped(self._decoder())
        self.layers: Sequence[nn.Module] = [unwrapped(layer) for layer in self.decoder.layers]  # type: ignore[union-attr, operator]
        self.attentions = [self._attention(layer) for layer in self.layers]
        config = next((module.config for module in self.attentions if module is not None), self.text_config)
        self.attention_config: Any = untapped(config)
        self.key_layers = self._key_layers()
        self.cache_slots = [self._slots(index) for index in range(len(self.layers))]
        names = inspect.signature(type(self.layers[0]).forward).parameters
        self.layer_arguments: tuple[str, ...] = tuple(names)[1:]
        self._mixing: dict[int, bool] = {}
        self.touches_hidden_between_layers: bool = self._touches_hidden_between_layers()

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def implementation(self) -> str:
        """The name of the attention implementation that the model asks for now."""
        return implementation_of(self.attention_config)

    @functools.cached_property
    def text_config(self) -> Any:
        """The decoder's config. Looked up once: transformers searches for it, and every layer of a prefill asks."""
        return self.config.get_text_config(decoder=True)  # type: ignore[union-attr]

    @property
    def mark(self) -> torch.Tensor:
        """Some weights of the decoder, float32 [64], by which the model is known again: of its first matrix, which is
        as a rule the embedding."""
        weight = next(p for p in self.decoder.parameters() if p.ndim > 1)
        if weight.is_meta:
            return torch.zeros(64)
        return weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64].float().cpu()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the placeholders that stand for visual tokens in ``input_ids``."""
        ids = (getattr(self.config, key, None) for key in TOKEN_ID_KEYS)
        return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's rotary embedding."""
        return getattr(self.decoder, "rotary_emb", None)

    @property
    def renumbers(self) -> bool:
        """Whether positions can be numbered anew: one rotary embedding, (hidden, position_ids [B, S]) -> (cos, sin)."""
        rotary = self.rotary
        if rotary is None or "position_embeddings" not in self.layer_arguments:
            return False
        arguments = list(inspect.signature(type(rotary).forward).parameters)[2:]
        code = _source(type(rotary).forward)
        triples = "mrope" in code or "mrope_section" in (getattr(self.text_config, "rope_parameters", None) or {})
        return arguments == ["position_ids"] and "return cos" in code and not triples

    @property
    def sparse_budget(self) -> int | None:
        """How many keys a query may choose where attention is sparse by an index, None for dense attention."""
        config = self.text_config
        if (blocks := getattr(config, "index_topk_blocks", None)) is not None:
            return blocks * config.index_block_size
        return getattr(config, "index_topk", None) or getattr(config, "indexer_budget", None)

    def refusal(self) -> str | None:
        """Why this loaded model cannot be pruned exactly, None if it can."""
        decoder: Any = type(self.decoder)
        if repeats_layers(decoder):
            return "some of its layers run several times in a forward pass, each time over the whole sequence"
        if self.implementation == "flex_attention":
            return "flex_attention's block masks cannot be shortened; load it with attn_implementation='sdpa'"
        if self.implementation.startswith("flash"):
            for index, module in enumerate(self.attentions):
                if getattr(module, "sliding_window", None):
                    where = f"{type(module).__name__} of layer {index}"
                    return f"under {self.implementation} {where} counts its window over what is left; use 'sdpa'"
        return None

    @property
    def vision_tower(self) -> nn.Module | None:
        """The vision encoder."""
        for name in ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"):
            if isinstance(tower := getattr(self.core, name, None), nn.Module):
                return unwrapped(tower)
        return None

    @property
    def projector(self) -> nn.Module | None:
        """The module between vision encoder and decoder."""
        for owner in (self.core, self.vision_tower):
            for name in ("multi_modal_projector", "connector", "merger"):
                if isinstance(module := getattr(owner, name, None), nn.Module):
                    return unwrapped(module)
        return None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches where every image has the same, else None."""
        vision = getattr(self.config, "vision_config", None)
        if not self.fixed_grid or not getattr(vision, "patch_size", None):
            return None
        side = vision.image_size // vision.patch_size  # type: ignore[union-attr]
        return side, side

    def visual_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Bool [B, S]: where the placeholders stand."""
        mask = input_ids == self.token_ids[0]
        for token in self.token_ids[1:]:
            mask = mask | (input_ids == token)
        return mask

    def find_visual(self, input_ids: torch.Tensor, inputs: dict[str, object]) -> torch.Tensor:
        """Bool [B, S]: the visual tokens of a forward pass of the core with keyword arguments ``inputs``."""
        self.check_own_pruning(inputs)
        return self.visual_mask(input_ids)

    def check_own_pruning(self, inputs: dict[str, object]) -> None:
        """Raise where the model would drop video tokens in its own forward (Efficient Video Sampling)."""
        rate = getattr(self.model, "video_pruning_rate", 0) or 0  # read from the config when the model was built
        encoded = inputs.get("mm_encoder_outputs")
        pairs = [*inputs.items(), *(encoded.items() if isinstance(encoded, Mapping) else ())]
        names = {name for name, value in pairs if value is not None}
        if rate > 0 and any("video" in name for name in names):
            raise PrunekitError(
                f"'{self.model_type}' drops {rate:.0%} of its video tokens by itself: load it with "
                "config.video_pruning_rate=0 to prune videos (images can be pruned as it is)"
            )

    def adjust_query(self, layer: int, query: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Correct a query [B, H, M, d] that the model scaled by its slot instead of its true position [B, M]."""
        return query

    def one_state(self, hidden: torch.Tensor) -> torch.Tensor:
        """What a layer is handed as one state a token, [B, S, D]: where there are several streams, their mean."""
        return hidden if hidden.ndim == 3 else hidden.mean(0 if self.token_axis == 2 else 2)

    def refuses_cuts(self, layers: tuple[int, ...]) -> str | None:
        """Why cuts before these layers cannot be exact, None if they can."""
        return None

    def fix_argument(self, name: str, value: object, sequence: CompactSequence) -> Any:
        """Correct a layer's argument that was gathered to a shortened sequence."""
        return value

    def decode_arguments(self, keys: torch.Tensor, queries: int) -> dict[str, object]:
        """Arguments that a layer with a pruned cache needs in a decode step in place of the model's.

        ``keys`` [B, stored + Q] are the dense positions of its keys (-1 for padding), the ``queries`` new ones last.
        """
        return {}

    def takes_local_mask(self, layer: int) -> bool:
        """Whether a layer's mask at decode covers the new tokens alone."""
        return False

    def relative_bias(self, layer: int) -> nn.Module | None:
        """The module that makes a layer's bias on attention logits from distances of places, if it has one."""
        return None

    def bias_at(
        self, module: nn.Module, states: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """What ``relative_bias`` makes of ``states`` for true positions [B, Q] and [B, K]: [B, H, Q, K].

        Raises:
            NotImplementedError: for a family that has none.
        """
        raise NotImplementedError

    def attention_function(self, layer: int) -> Callable[..., Any]:
        """The attention function that layer would call by itself.

        Raises:
            PrunekitError: for a layer without one.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        module = self.attentions[layer]
        if module is None:
            kind = type(self.layers[layer]).__name__
            raise PrunekitError(f"{self.model_type}: {kind} {layer} does not use transformers' attention interface")
        code = sys.modules[type(module).forward.__module__]  # a wrapper in place, as FSDP's, has another module
        eager = getattr(code, "eager_attention_forward", None)
        table = getattr(code, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        return table.get_interface(self.implementation, eager)

    @property
    def input_embeddings(self) -> nn.Module | None:
        """The embedding that sees token ids, for models whose ``generate`` hands the decoder embeddings alone."""
        return None

    def _key_layers(self) -> list[int]:
        """For each layer the one whose keys it attends to: itself, or an earlier one of its type that shares them."""
        lenders: list[int] = []
        last: dict[Any, int] = {}
        for index, module in enumerate(self.attentions):
            kind = self._sharing_kind(module)
            if not getattr(module, "is_kv_shared_layer", False):
                last[kind] = index
            lenders.append(last.get(kind, index))
        return lenders

    def _sharing_kind(self, module: nn.Module | None) -> Any:
        """Layers take keys from the last layer of the same kind."""
        return getattr(module, "layer_type", None)

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention rows to read (a recurrent or convolution layer has none)."""
        return self.attentions[layer] is not None

    def mixes_and_attends(self, layer: int) -> bool:
        """Whether a layer joins attention with a state or a convolution, so that it wants two kinds of masks: one over
        keys and one of padding, under whatever names."""
        if layer not in self._mixing:
            masks = [name for name in self.layer_arguments if is_mask_name(name)]
            flash = self.implementation.startswith("flash")
            self._mixing[layer] = self.attends(layer) and not flash and (len(masks) > 1 or self.convolves(layer))
        return self._mixing[layer]

    def convolves(self, layer: int) -> bool:
        """Whether a layer has a convolution over the tokens, by itself or in a recurrent mixer."""
        return any(isinstance(module, nn.Conv1d) for module in self.layers[layer].modules())

    def leaks_padding(self, layer: int) -> str | None:
        """The module of a layer that mixes neighbours by a convolution and looks at no mask (Griffin's recurrent
        block), None without: what stands in its padding slots reaches the tokens behind them."""
        kinds: list[Any] = [
            type(module)
            for module in self.layers[layer].modules()
            if any(isinstance(child, nn.Conv1d) for child in module.children())
        ]
        return next((kind.__name__ for kind in kinds if not reads_mask(kind)), None)

    def _slots(self, layer: int) -> tuple[int, ...]:
        """Which layers of the KV cache a decoder layer fills: its own, or one for each of its attention modules."""
        modules = [m for m in self.layers[layer].modules() if _uses_interface(type(m))]
        slots = {slot for m in modules if isinstance(slot := getattr(m, "layer_idx", None), int)}
        return tuple(sorted(slots)) if len(slots) > 1 else (layer,)

    def takes_padding_mask(self, layer: int) -> bool:
        """Whether a layer's mask is 2-D padding, as recurrent and convolution layers and flash attention want it."""
        kinds = getattr(self.text_config, "layer_types", None)
        return self.implementation.startswith("flash") or bool(kinds and kinds[layer] in RECURRENT)

    def _touches_hidden_between_layers(self) -> bool:
        return "deepstack" in _source(type(self.decoder).forward)

    def _core(self) -> nn.Module:
        base = getattr(self.model, "base_model", None)
        if not isinstance(base, nn.Module) or not self.token_ids:
            raise PrunekitError(f"model type '{self.model_type}' has no image tokens: not a vision-language model?")
        return base

    def _decoder(self) -> nn.Module:
        getter = getattr(self.model, "get_decoder", None)
        return self._decoder_of(getter() if getter is not None else None, getattr(self.core, "language_model", None))

    def _decoder_of(self, *first_modules: nn.Module | None) -> nn.Module:
        queue = list(first_modules)
        while queue:  # down through wrappers: a language model with a head, a decoder inside a model
            module = queue.pop(0)
            if isinstance(getattr(module, "layers", None), nn.ModuleList):
                return module  # type: ignore[return-value]
            inner = (getattr(module, name, None) for name in ("model", "decoder", "text_model"))
            queue += [m for m in inner if isinstance(m, nn.Module) and m is not self.model]
        raise PrunekitError(f"model type '{self.model_type}': no decoder layers found in {type(self.model).__name__}")

    def _attention(self, layer: nn.Module) -> nn.Module | None:
        return next((m for m in layer.modules() if hasattr(m, "config") and _uses_interface(type(m))), None)


@functools.cache
def _source(forward: Callable[..., Any]) -> str:
    """The source of a module's forward, "" where there is none to read."""
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):
        return ""


@functools.cache
def reads_mask(kind: type[nn.Module]) -> bool:
    """Whether a module's forward uses an argument that is named as a mask; True where there is no source to read."""
    source = textwrap.dedent(_source(kind.forward))
    names = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return not source or any(is_mask_name(name.id) for name in names)


@functools.cache
def repeats_layers(kind: type[nn.Module]) -> bool:
    """Whether a decoder's forward has a loop over its layers inside another loop."""
    source = textwrap.dedent(_source(kind.forward))
    loops = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For | ast.While)]
    inner = [node for loop in loops for node in ast.walk(loop) if isinstance(node, ast.For) and node is not loop]
    return any(isinstance(n, ast.Attribute) and n.attr == "layers" for node in inner for n in ast.walk(node.iter))


def _uses_interface(kind: type[nn.Module]) -> bool:
    """Whether a module hands its queries and keys to transformers' attention interface."""
    return "attention_interface(" in _source(kind.forward)
