"""Patches of any resolution with their grids, and three-dimensional rotary positions: Qwen-VL and its like."""

from __future__ import annotations

from typing import Any

import torch

from .base import END, IMAGE, MOE, START, TEXT, VIDEO, Layout, Media, Runs, add, patches, token_types

# A family a few lines:
# fmt: off

IDS: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END
)
GRID = ("pixel_values_videos", "video_grid_thw")


def mrope(*section: int, **more: Any) -> dict[str, Any]:
    """Rotary parameters for heads of 8: the sections add up to 4."""
    return {"rope_type": "default", "mrope_section": list(section or (2, 1, 1)), "rope_theta": 10000.0, **more}


def video(**more: Any) -> Any:
    """Videos of two (merged) frames."""
    return patches(frames=2, sizes=((4, 4), (4, 4), (4, 6)), keys=GRID, token=VIDEO, **more)


VISION: dict[str, Any] = dict(
    depth=2, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, in_channels=3
)
DEEPSTACK: dict[str, Any] = VISION | dict(
    intermediate_size=48, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 1]
)
INTERLEAVED = mrope(2, 1, 1, mrope_interleaved=True)

add("qwen2_vl", lambda: dict(
    text_config=TEXT | {"rope_parameters": mrope()}, vision_config=VISION | dict(embed_dim=16, mlp_ratio=2), **IDS),
    patches(), video=video(), finish=token_types())
add("qwen2_5_vl", lambda: dict(
    text_config=TEXT | {"rope_parameters": mrope()}, **IDS,
    vision_config=VISION | dict(intermediate_size=48, out_hidden_size=32, window_size=16, fullatt_block_indexes=[1])),
    patches(), video=video(), finish=token_types())
add("qwen3_vl", lambda: dict(
    text_config=TEXT | {"head_dim": 8, "rope_parameters": INTERLEAVED}, vision_config=DEEPSTACK, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())
add("qwen3_vl_moe", lambda: dict(
    text_config=TEXT | MOE | {"head_dim": 8, "rope_parameters": INTERLEAVED}, vision_config=DEEPSTACK, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())


def glm(**more: Any) -> dict[str, Any]:
    """The ids of the GLM family; its rotary embedding covers half a head."""
    return dict(
        image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END,
        video_start_token_id=112, video_end_token_id=113, vision_config=GLM_VISION, **more,
    )


def _glm_types(inputs: dict[str, Any]) -> None:
    """GLM writes video frames with image tokens; only the types tell."""
    kind = 2 if "video_grid_thw" in inputs else 1
    inputs["mm_token_type_ids"] = kind * (inputs["input_ids"] == IMAGE).long()


GLM_VISION: dict[str, Any] = dict(
    depth=2, hidden_size=32, num_heads=2, image_size=32, patch_size=4, out_hidden_size=32, intermediate_size=48
)
GLM_TEXT = TEXT | {"rope_parameters": mrope(2, 1, 1, partial_rotary_factor=1.0)}
for _name, _text in (
    ("glm4v", GLM_TEXT),
    ("glm46v", GLM_TEXT | {"model_type": "glm4v_text"}),
    ("glmga", GLM_TEXT | {"model_type": "glm4v_text"}),
    ("glm_ocr", GLM_TEXT),
    ("glm4v_moe", GLM_TEXT | dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
):
    add(_name, lambda _text=_text: glm(text_config=_text), patches(),
        video=patches(frames=2, sizes=((4, 4), (4, 4), (4, 6)), keys=GRID, split_frames=True), finish=_glm_types)

ERNIE: dict[str, Any] = dict(depth=2, hidden_size=32, num_heads=2, patch_size=4, intermediate_size=48)


def _ernie_types(inputs: dict[str, Any]) -> None:
    token_types()(inputs)
    inputs["moe_mm_token_type_ids"] = (inputs["mm_token_type_ids"] > 0).long()


add("ernie4_5_vl_moe", lambda: dict(
    text_config=TEXT | dict(rope_parameters=mrope(1, 1, 2), moe_intermediate_size=[16, 12], moe_k=2,
                            moe_num_experts=4, moe_num_shared_experts=1),
    vision_config=ERNIE, image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START,
    image_end_token_id=END, video_start_token_id=112, video_end_token_id=113),
    patches(temporal=1), finish=_ernie_types,
    video=patches(temporal=1, frames=2, merge_frames=2, sizes=((4, 4), (4, 6), (6, 8)), keys=GRID, token=VIDEO))


def _merge_sizes(media: Media, key: str) -> Media:
    """VideoLLaMA 3 says the merge of each picture."""

    def merged(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        inputs, runs = media(pictures, generator)
        return inputs | {key: torch.full((sum(map(len, pictures)),), 2)}, runs

    return merged


add("video_llama_3", lambda: dict(
    text_config=TEXT | {"model_type": "qwen2"}, image_token_id=IMAGE, video_token_id=VIDEO,
    vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=4)),
    _merge_sizes(patches(temporal=1), "image_merge_sizes"),
    video=_merge_sizes(
        patches(temporal=1, frames=2, sizes=((4, 4), (4, 4), (4, 6)), keys=GRID, token=VIDEO), "video_merge_sizes"))
