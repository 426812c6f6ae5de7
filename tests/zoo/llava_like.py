"""A vision encoder, a projector, a decoder of the Llama kind: LLaVA and its descendants."""

from __future__ import annotations

from typing import Any

import torch
from .base import CLIP, IMAGE, SIGLIP, VIDEO, Layout, Media, Runs, add, fixed, text

PINPOINTS = [[8, 16], [16, 8], [16, 16]]
TILE = CLIP | {"image_size": 8}  # 2 × 2 patches
CLIP12 = CLIP | {"image_size": 12}  # 3 × 3 patches


def tiles(counts: bool = False) -> Media:
    """LLaVA-NeXT's tiles of 8 × 8 pixels, with a newline token for each row of patches; the first tile is the whole."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        many = counts and any(len(sample) > 1 for sample in pictures)
        sizes, runs = [], []
        for sample in pictures:
            whole = many and len(sample) > 1  # several pictures: LLaVA-OneVision tiles none of them
            sizes += [[(16, 16), (8, 16), (16, 8)][size] for size in sample]
            runs.append([[IMAGE] * (5 if whole else [24, 14, 16][size]) for size in sample])
        inputs: dict[str, Any] = {"image_sizes": torch.tensor(sizes)}
        inputs["pixel_values"] = torch.randn(len(sizes), 5, 3, 8, 8, generator=generator)
        if many:
            inputs["batch_num_images"] = torch.tensor([len(sample) for sample in pictures])
        return inputs, runs

    return media


def frames(count: int, number: int, side: int) -> Media:
    """Videos of ``number`` frames, ``count`` tokens in all."""
    return fixed(count, (number, 3, side, side), "pixel_values_videos", VIDEO)


add("llava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP, image_token_index=IMAGE),
    fixed(16))  # fmt: skip
add("llava_next", lambda: dict(
    text_config=text("llama"), vision_config=TILE, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS),
    tiles())  # fmt: skip
add("llava_next_video", lambda: dict(
    text_config=text("llama"), vision_config=TILE, image_token_index=IMAGE, video_token_index=VIDEO,
    image_grid_pinpoints=PINPOINTS),
    tiles(), video=frames(8, 8, 8))  # fmt: skip
add("llava_onevision", lambda: dict(
    text_config=text("qwen2"), vision_config=SIGLIP | {"image_size": 8}, image_token_index=IMAGE,
    video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS),
    tiles(counts=True), video=frames(9, 8, 8))  # fmt: skip
add("video_llava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP12, image_token_index=IMAGE, video_token_index=VIDEO),
    fixed(9, (3, 12, 12)), video=frames(20, 2, 12))  # fmt: skip
add("vipllava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP, image_token_index=IMAGE, vision_feature_layer=(-2, -1)),
    fixed(16))  # fmt: skip
