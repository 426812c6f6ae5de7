"""Three families with six decoder layers and many visual tokens: for several cuts, and for exact figures."""

from __future__ import annotations

import copy
import functools

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from .base import Batch

IMAGE, PAD, VOCAB = 90, 0, 96
FAMILIES = ("llava", "llava_next", "qwen2_vl")
PADDINGS = ("none", "left", "right")
DEPTH = 6

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=DEPTH,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=None,
)
CLIP = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
)


@functools.cache
def _config(family: str):
    if family == "qwen2_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        return Qwen2VLConfig(
            text_config={**TEXT, "rope_parameters": rope},
            vision_config=dict(
                depth=2, embed_dim=16, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2,
                temporal_patch_size=2, mlp_ratio=2, in_channels=3,
            ),
            image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
        )  # fmt: skip
    kind, extra = (
        (LlavaConfig, {})
        if family == "llava"
        else (LlavaNextConfig, {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]})
    )
    return kind(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**CLIP), image_token_id=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy="default", **extra,
    )  # fmt: skip


_MODELS = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}


def tiny_model(family: str, attn: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """A random model whose weights are scaled up until hiding tokens visibly moves its logits."""
    torch.manual_seed(seed)
    model = _MODELS[family]._from_config(copy.deepcopy(_config(family)), attn_implementation=attn)
    return scaled_up(model)


def scaled_up(model: torch.nn.Module) -> torch.nn.Module:
    """The model, ready to generate, with larger weights."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "language_model" in name or "lm_head" in name else 2.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.float().eval()


def tiny_batch(inputs: dict[str, torch.Tensor]) -> Batch:
    """A batch of these inputs, whose visual tokens are the image placeholders that are not padding."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return Batch(inputs, (inputs["input_ids"] == IMAGE) & mask.bool())


def make_batch(family: str, padding: str = "none", seed: int = 0, batch: int = 3) -> Batch:
    """``batch`` samples of text, one image, text; texts of different lengths if the batch is to be padded."""
    g = torch.Generator().manual_seed(seed)
    extra: dict[str, torch.Tensor] = {}
    if family == "qwen2_vl":
        grids = torch.tensor([[1, 6, 8]] * batch if padding == "none" else [[1, 6, 8], [1, 4, 4], [1, 8, 4]][:batch])
        counts = (grids.prod(1) // 4).tolist()
        extra["pixel_values"] = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4, generator=g)
        extra["image_grid_thw"] = grids
    elif family == "llava":
        counts = [16] * batch
        extra["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=g)
    else:
        sizes = torch.tensor([[32, 32]] * batch if padding == "none" else [[32, 32], [16, 32], [32, 16]][:batch])
        extra["image_sizes"] = sizes
        extra["pixel_values"] = torch.randn(batch, 5, 3, 16, 16, generator=g)
        model = tiny_model(family)
        with torch.no_grad():
            features = model.get_image_features(extra["pixel_values"], sizes)
        features = getattr(features, "pooler_output", features)
        counts = [len(f) for f in features]
    rows = []
    for i in range(batch):
        before, after = (3, 7) if padding == "none" else (2 + i, 4 + 2 * i)
        text = torch.randint(2, 80, (before + after,), generator=g).tolist()
        rows.append([*text[:before], *([IMAGE] * counts[i]), *text[before:]])
    size = max(map(len, rows))
    ids, mask = torch.full((batch, size), PAD), torch.zeros(batch, size, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if padding == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    if family == "qwen2_vl":
        extra["mm_token_type_ids"] = (ids == IMAGE).int()
    return tiny_batch({"input_ids": ids, "attention_mask": mask, **extra})


def two_images_and_none() -> Batch:
    """Samples with two images, one image and none, right-padded."""
    image = [90] * 16
    rows = [[5, *image, 6, *image, 7, 8], [9, *image, 11, 12, 13], [14, 15, 16]]
    size = max(map(len, rows))
    ids, mask = torch.zeros(3, size, dtype=torch.long), torch.zeros(3, size, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = torch.tensor(row), 1
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return tiny_batch({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
