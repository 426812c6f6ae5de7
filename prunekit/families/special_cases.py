"""Families that need more than the generic path, each a small subclass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.base import Family
from prunekit.tensors.sequences import CompactSequence


class QFormerLanguageModel(Family):
    """BLIP-2 and InstructBLIP: ``generate`` of the whole embeds the prompt itself and calls the language model's."""

    def _core(self) -> nn.Module:
        if not self.config.use_decoder_only_language_model:  # type: ignore[union-attr]
            kind = self.config.text_config.model_type  # type: ignore[union-attr]
            reason = f"with a {kind} inside, its visual tokens stand in an encoder's sequence"
            raise PrunekitError(f"model type '{self.model_type}' cannot be pruned: {reason}")
        if not self.token_ids:
            raise PrunekitError(f"model type '{self.model_type}': its config names no image token")
        return self._decoder_of(self.model.language_model)  # type: ignore[arg-type]

    @property
    def input_embeddings(self) -> nn.Module | None:
        return self.model.get_input_embeddings()  # type: ignore[operator]


class Kosmos(Family):
    """KOSMOS-2 and 2.5: visual positions come as ``image_embeds_position_mask``, not as token ids."""

    def _core(self) -> nn.Module:
        return self.model.text_model  # type: ignore[return-value]

    def find_visual(self, input_ids: torch.Tensor, inputs: dict[str, object]) -> torch.Tensor:
        mask = inputs.get("image_embeds_position_mask")
        return torch.zeros_like(input_ids, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()


class Gemma3n(Family):
    """Gemma 3n: AltUp carries several streams, hidden states are [streams, B, S, D]."""

    token_axis = 2
    stacked = True


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


class MiniMaxM3(Family):
    """MiniMax M3: its index compares position ids with *places* of keys, so it must be given places."""

    def fix_argument(self, name: str, value: object, sequence: CompactSequence) -> Any:
        if name != "position_ids" or value is None:
            return value
        assert sequence.index is not None
        return torch.arange(sequence.index.shape[1], device=sequence.index.device)[None]

    def decode_arguments(self, keys: torch.Tensor, queries: int) -> dict[str, object]:
        return {"position_ids": torch.arange(keys.shape[1] - queries, keys.shape[1], device=keys.device)[None]}


class MistralLarge4(Family):
    """Mistral Large 4: layers that borrow keys have an index of their own tokens beside them."""

    def _sharing_kind(self, module: Any) -> Any:
        return getattr(module, "use_rope", None)

    def refuses_cuts(self, layers: tuple[int, ...]) -> str | None:
        for borrower, lender in enumerate(self.key_layers):
            if between := [layer for layer in layers if lender < layer <= borrower]:
                return (
                    f"layer {borrower} borrows the keys of layer {lender}, no cut can lie between (layer {between[0]})"
                )
        return None


class Glm5Next(Family):
    """GLM 5: several streams for a token, [B, S, streams, D]; masks are 2-D everywhere, and local at decode."""

    stacked = True
    single_steps = True  # its index counts query places from the cache's length

    def takes_padding_mask(self, layer: int) -> bool:
        return True

    def takes_local_mask(self, layer: int) -> bool:
        return True


class Qwen4(Family):
    """Qwen 4: n-gram embeddings look back from each token: before the first one they must find what padding shows."""

    stacked = True

    def fix_argument(self, name: str, value: object, sequence: CompactSequence) -> Any:
        if name != "ple_input_ids" or value is None or sequence.valid is None:
            return value
        end = self.text_config.eos_token_id
        assert isinstance(value, torch.Tensor)
        return value.masked_fill(~sequence.valid, end[0] if isinstance(end, list) else end)


class Inkling(Family):
    """Inkling: no positions but a bias by distance, which the model counts in places."""

    def refusal(self) -> str | None:
        if type(self) is Inkling and getattr(self.text_config, "log_scaling_n_floor", None) is not None:
            return "log_scaling_n_floor scales its queries by their places"
        return super().refusal()

    def relative_bias(self, layer: int) -> nn.Module | None:
        return getattr(self.attentions[layer], "rel_logits_proj", None)

    def bias_at(
        self, module: nn.Module, states: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        extent: Any = module.rel_extent
        logits = (states @ module.proj).transpose(1, 2)  # type: ignore[operator]
        distance = (queries[:, :, None] - keys[:, None, :])[:, None]
        bias = logits.gather(-1, distance.clamp(0, extent - 1).expand(-1, logits.shape[1], -1, -1))
        return bias.masked_fill((distance < 0) | (distance >= extent), 0.0)


class Inkling2(Inkling):
    """Inkling 2: the text model keeps hidden states of earlier layers, so their length must not change.

    From transformers 5.24 on its layers are given their distances, [Q, K], where before they counted places by
    themselves: here each sample has its own, [B, 1, Q, K], which the bias broadcasts over heads.
    """

    stacked = True

    def _attention(self, layer: nn.Module) -> nn.Module | None:
        return layer.self_attn  # type: ignore[return-value]  # what joins earlier layers calls the interface as well

    def fix_argument(self, name: str, value: object, sequence: CompactSequence) -> Any:
        if name != "relative_distance":
            return value
        assert sequence.index is not None
        return (sequence.index[:, :, None] - sequence.index[:, None, :])[:, None]

    def decode_arguments(self, keys: torch.Tensor, queries: int) -> dict[str, object]:
        if "relative_distance" not in self.layer_arguments:
            return {}
        return {"relative_distance": (keys[:, keys.shape[1] - queries :, None] - keys[:, None, :])[:, None]}

    def _touches_hidden_between_layers(self) -> bool:
        return True
