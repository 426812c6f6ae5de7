"""Models of named shapes with random weights: what a shape costs in time does not depend on what it has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError, check_choice

_CLIP_L = dict(
    model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, image_size=336, patch_size=14,
)  # fmt: skip
_CLIP_TOY = dict(
    model_type="clip_vision_model", hidden_size=128, intermediate_size=512, num_hidden_layers=4,
    num_attention_heads=4, image_size=336, patch_size=14,
)  # fmt: skip
_SIGLIP = dict(
    model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
    num_attention_heads=16, image_size=384, patch_size=14, vision_use_head=False,
)  # fmt: skip
_SIGLIP_TOY = {
    **_SIGLIP, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4
}  # fmt: skip
_TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llama(hidden: int, mlp: int, layers: int, heads: int, vocab: int = 32064) -> dict[str, Any]:
    return dict(
        model_type="llama", hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=65536,
    )  # fmt: skip


def _llava(text: Mapping[str, str | int], vision: Mapping[str, object], **more: object) -> dict[str, Any]:
    image = int(text["vocab_size"]) - 64
    return dict(model_type="llava", text_config=text, vision_config=vision, image_token_index=image, **more)


def _onevision(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    ids = dict(image_token_index=text["vocab_size"] - 64, video_token_index=text["vocab_size"] - 63)
    return dict(
        model_type="llava_onevision", text_config=text, vision_config=vision, **ids, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip


def _qwen() -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, max_position_embeddings=65536, rope_parameters=rope,
    )  # fmt: skip
    vision = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584)
    return dict(model_type="qwen2_5_vl", text_config=text, vision_config=vision)


SHAPES: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": _llava(_llama(4096, 11008, 32, 32), _CLIP_L),
    "llava-1.5-13b": _llava(_llama(5120, 13824, 40, 40), _CLIP_L),
    "llava-next": {
        **_llava(_llama(4096, 11008, 32, 32), _CLIP_L, image_grid_pinpoints=_TILES), "model_type": "llava_next"
    },
    "qwen2.5-vl-7b": _qwen(),
    "llava-onevision-7b": _onevision(
        dict(
            model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, vocab_size=152128, max_position_embeddings=65536, rope_theta=1e6,
        ),
        _SIGLIP,
    ),
    "small": _llava(_llama(256, 688, 8, 4, vocab=4096), _CLIP_TOY),
    "medium": _llava(_llama(512, 1376, 12, 8, vocab=4096), _CLIP_TOY),
    "small-video": _onevision(_llama(256, 688, 8, 4, vocab=4096), _SIGLIP_TOY),
}  # fmt: skip
"""The published models' configs, and two that a CPU runs."""

VISUAL = {"llava-next": 2880, "qwen2.5-vl-7b": 1296, "llava-onevision-7b": 6273, "small-video": 6273}
"""Visual tokens of one prompt, where it is not LLaVA-1.5's 576: five tiles; an image of 1008 x 1008 pixels; a video of
32 frames."""


@dataclass(frozen=True)
class VideoTokens:
    """Visual tokens of a video: ``each`` for a frame or a group of ``joined`` frames, and ``more`` at its end."""

    each: int
    joined: int = 1
    more: int = 0

    def count(self, frames: int) -> int:
        """Tokens of a video of so many frames; the last group is filled up."""
        return -(-frames // self.joined) * self.each + self.more


VIDEO: dict[str, VideoTokens] = {
    "llava-onevision-7b": VideoTokens(196, more=1),
    "small-video": VideoTokens(196, more=1),
    "qwen2.5-vl-7b": VideoTokens(256, joined=2),
}
"""Shapes that take videos: a frame's 729 patches pooled to 196 tokens, with a newline at the end; pairs of frames of
448 x 448 pixels."""


def video_tokens(name: str) -> VideoTokens:
    """What a video comes to in a named shape.

    Raises:
        PrunekitError: for a shape that takes none.
    """
    if name not in VIDEO:
        raise PrunekitError(f"bench.frames: shape '{name}' takes no videos; {', '.join(VIDEO)} do")
    return VIDEO[name]


def config_of(name: str) -> Any:
    """The transformers config of a named shape; an unknown name raises with the nearest."""
    from transformers import AutoConfig

    check_choice("bench.shape", name, SHAPES)
    options = dict(SHAPES[name])
    return AutoConfig.for_model(options.pop("model_type"), **options)


def build(name: str, device: torch.device, dtype: torch.dtype, attn: str = "sdpa") -> nn.Module:
    """A model of a named shape with random weights, made where and as it is to run: no second copy of its weights.

    Raises:
        PrunekitError: for an unknown shape, or one that does not fit the device.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    config = config_of(name)
    try:
        with no_init_weights(), device:
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
        _fill(model)
    except (torch.OutOfMemoryError, MemoryError):
        raise PrunekitError(f"shape '{name}' in {dtype} does not fit {device}") from None
    except RuntimeError as error:  # the CPU's allocator has no error of its own
        if "memory" not in str(error):
            raise
        raise PrunekitError(f"shape '{name}' in {dtype} does not fit {device}") from None
    return model.eval()


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Weights of unit gain from one block of noise, repeated: drawing billions of numbers takes minutes on a CPU."""
    noise: dict[torch.dtype, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        kind = parameter.dtype
        if kind not in noise:
            generator = torch.Generator(parameter.device).manual_seed(0)
            noise[kind] = torch.randn(2**20 - 3, generator=generator, device=parameter.device, dtype=kind)
        flat, block = parameter.view(-1), noise[kind] * parameter[0].numel() ** -0.5
        for start in range(0, len(flat), len(block)):
            part = flat[start : start + len(block)]
            part.copy_(block[: len(part)])
