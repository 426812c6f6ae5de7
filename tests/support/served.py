"""Folders of tiny random models with processors, as vLLM can serve them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
           "<|vision_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"]  # fmt: skip
WORDS = [f"w{i}" for i in range(100)]
TEXT: dict[str, Any] = dict(
    vocab_size=len(SPECIAL) + len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)  # fmt: skip
CLIP: dict[str, Any] = dict(
    model_type="clip_vision_model", hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
    image_size=32, patch_size=8, projection_dim=48,
)  # fmt: skip
QWEN: dict[str, Any] = dict(depth=2, num_heads=2, patch_size=8, spatial_merge_size=2, temporal_patch_size=2)
ROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
ids = SPECIAL.index
PADS = dict(image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"))  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llava_next": dict(
        vision_config=CLIP, text_config={"model_type": "llama", **TEXT}, image_token_index=ids("<image>"),
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]], vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    ),
    "llava_onevision": dict(
        vision_config={**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT}, image_token_index=ids("<image>"),
        video_token_index=ids("<video>"), image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    ),
    "internvl": dict(
        vision_config=dict(
            hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32],
            patch_size=[4, 4],
        ),
        text_config={"model_type": "qwen2", **TEXT}, image_token_id=ids("<IMG_CONTEXT>"), downsample_ratio=0.5,
        image_seq_length=16,
    ),
    "qwen2_vl": dict(
        vision_config=dict(**QWEN, embed_dim=32, hidden_size=64),
        text_config={"model_type": "qwen2_vl_text", **TEXT, "rope_parameters": ROPE}, **PADS,
    ),
    "qwen2_5_vl": dict(
        vision_config=dict(
            **QWEN, hidden_size=32, out_hidden_size=64, intermediate_size=48, window_size=32, fullatt_block_indexes=[1]
        ),
        text_config={"model_type": "qwen2_5_vl_text", **TEXT, "rope_parameters": ROPE}, **PADS,
    ),
    "qwen3_vl": dict(
        vision_config=dict(
            **QWEN, hidden_size=32, out_hidden_size=64, intermediate_size=48, num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        text_config={
            "model_type": "qwen3_vl_text", **TEXT, "rope_parameters": {**ROPE, "mrope_interleaved": True}
        },
        **PADS,
    ),
}  # fmt: skip
MARKS = {"internvl": "<IMG_CONTEXT>", **{name: "<image>" for name in ("llava_next", "llava_onevision")}}
QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"


def mark(name: str) -> str:
    """What stands for an image in a prompt of a family."""
    return MARKS.get(name, QWEN_MARK)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One word, one token; the family's own names for its special tokens go with it."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    if name == "internvl":
        names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
                 "video_token": "<video>"}  # fmt: skip
    elif name in MARKS:
        names = {"image_token": "<image>", "video_token": "<video>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=names,
    )  # fmt: skip


def processor(name: str) -> Any:
    """The family's processor around ``tokenizer``."""
    import transformers as t

    words = tokenizer(name)
    if name in ("llava_next", "llava_onevision"):
        size = {"height": 32, "width": 32}
        pins = CONFIGS[name]["image_grid_pinpoints"]
        if name == "llava_next":
            pixels = t.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=pins)
            return t.LlavaNextProcessor(
                pixels, words, patch_size=8, vision_feature_select_strategy="default", image_token="<image>",
                num_additional_image_tokens=1,
            )  # fmt: skip
        pixels = t.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pins)
        videos = t.LlavaOnevisionVideoProcessor(size=size)
        return t.LlavaOnevisionProcessor(
            pixels, words, videos, num_image_tokens=16, vision_feature_select_strategy="full", image_token="<image>",
            video_token="<video>", vision_aspect_ratio="anyres_max_9",
        )  # fmt: skip
    if name == "internvl":
        pixels = t.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False)
        return t.InternVLProcessor(pixels, words, t.InternVLVideoProcessor(size={"height": 32, "width": 32}),
                                   image_seq_length=16)  # fmt: skip
    pixel_limits = dict(patch_size=8, merge_size=2, temporal_patch_size=2)
    sizes = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    pixels = t.Qwen2VLImageProcessor(**pixel_limits, size=sizes)
    if name == "qwen3_vl":
        return t.Qwen3VLProcessor(pixels, words, t.Qwen3VLVideoProcessor(**pixel_limits, size=sizes))
    videos = t.Qwen2VLVideoProcessor(**pixel_limits, size=sizes)
    kind = t.Qwen2VLProcessor if name == "qwen2_vl" else t.Qwen2_5_VLProcessor
    return kind(pixels, words, videos)


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model of a family with its processor; its weights make pictures matter."""
    sys.path.insert(0, str(Path(__file__).parent))
    from zoo.base import draw_weights

    config = AutoConfig.for_model(name, **CONFIGS[name])
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    draw_weights(model, seed)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model.float().save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Noise of (width, height), in blocks that survive resizing."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize(size, Image.Resampling.NEAREST)
