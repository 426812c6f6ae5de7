"""Patches with grids, as Qwen-VL takes them, under decoders of many kinds."""

from __future__ import annotations

from typing import Any

import torch

from .base import CLIP, END, IMAGE, MOE, START, TEXT, VIDEO, Layout, Runs, add, patches, text, token_types
from .qwen_like import DEEPSTACK, GRID, IDS, INTERLEAVED, VISION, mrope, video

# A family a few lines:
# fmt: off

BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k not in ("model_type", "image_size")}
MIXED = ["sliding_attention", "full_attention"] * 3
SLIDING: dict[str, Any] = dict(num_hidden_layers=6, layer_types=MIXED, sliding_window=8)
QWEN25 = VISION | dict(intermediate_size=48, out_hidden_size=32, window_size=16, fullatt_block_indexes=[1])
PICTURES: dict[str, Any] = dict(image_token_id=IMAGE, video_token_id=VIDEO)
AUDIO: dict[str, Any] = dict(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32
)


def _rows(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """HunYuan: a newline for each row of merged patches, and a begin and an end."""
    sizes = ((6, 6), (4, 4), (8, 4))
    inputs, _ = patches(temporal=1, sizes=sizes)(pictures, generator)
    counts = [h // 2 * (w // 2 + 1) + 2 for h, w in sizes]
    return inputs, [[[IMAGE] * counts[size] for size in sample] for sample in pictures]


def _seconds(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Videos that say how long a frame is."""
    inputs, runs = video()(pictures, generator)
    return inputs | {"video_second_per_grid": torch.ones(sum(map(len, pictures)))}, runs


add("cohere_compass", lambda: dict(
    text_config=TEXT | SLIDING | dict(
        logit_scale=1.0, rope_parameters={"sliding_attention": INTERLEAVED, "full_attention": INTERLEAVED}),
    vision_config=DEEPSTACK, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())
add("cosmos3_edge", lambda: dict(
    text_config=TEXT | dict(head_dim=8, rope_parameters=mrope()), projector_hidden_size=48,
    vision_config=BARE | dict(num_patches=16), **IDS),
    patches(temporal=1), video=video(temporal=1, split_frames=True), finish=token_types())
add("cosmos3_omni", lambda: dict(
    text_config=TEXT | {"head_dim": 8, "rope_parameters": INTERLEAVED, "model_type": "qwen3_vl_text"},
    vision_config=DEEPSTACK, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())
add("exaone4_5", lambda: dict(
    text_config=text("exaone4", **SLIDING), vision_config=QWEN25 | {"num_key_value_heads": 1}, **PICTURES),
    patches(), video=video())
add("hyperclovax_vision_v2", lambda: dict(text_config=text("hyperclovax"), vision_config=QWEN25, **PICTURES),
    patches(), video=video())
add("kimi_k25", lambda: dict(
    text_config=text(
        "deepseek_v3", n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
        kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
        first_k_dense_replace=1),
    vision_config=BARE | dict(pos_emb_height=8, pos_emb_width=8, pos_emb_time=2), projection_hidden_size=24, **IDS),
    patches(temporal=1, flat=False),
    video=patches(temporal=1, flat=False, keys=GRID, token=VIDEO))
MUSE_TEXT: dict[str, Any] = dict(output_multiplier=1.0, qk_scale_factor=1.0, post_norm_eps=1e-3)
MUSE: dict[str, Any] = dict(
    vision_config=BARE | dict(pos_emb_height=8, pos_emb_width=8, max_position_embeddings=64), out_hidden_size=96,
    projector_hidden_size=32, **PICTURES,
)
add("muse_glimmer", lambda: dict(text_config=TEXT | SLIDING | dict(head_dim=8, **MUSE_TEXT), **MUSE),
    patches(), video=video())
add("muse_spark", lambda: dict(
    text_config=TEXT | SLIDING | dict(
        head_dim=8, **MUSE_TEXT, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        moe_hidden_size=16),
    audio_config=dict(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_hidden_size=32), **MUSE),
    patches(), video=video(), gain=0.8)
add("paddleocr_vl", lambda: dict(
    text_config=TEXT | dict(head_dim=8, rope_parameters=mrope()), vision_config=BARE | dict(image_size=32), **IDS),
    patches(temporal=1, flat=False), finish=token_types())
add("qwen2_5_omni_thinker", lambda: dict(
    text_config=TEXT | {"rope_parameters": mrope()}, vision_config=QWEN25, audio_config=AUDIO,
    image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=124, vision_start_token_id=START,
    vision_end_token_id=END),
    patches(), video=_seconds)
add("qwen3_omni_moe_thinker", lambda: dict(
    text_config=TEXT | MOE | {"head_dim": 8, "rope_parameters": INTERLEAVED}, vision_config=DEEPSTACK,
    audio_config=AUDIO | {"downsample_hidden_size": 8}, audio_token_id=124, **IDS),
    patches(), video=_seconds)
add("hunyuan_vl", lambda: dict(
    text_config=TEXT | dict(head_dim=8, rope_parameters={
        "rope_type": "dynamic", "alpha": 2.0, "factor": 1.0, "mrope_section": [1, 1, 1, 1], "rope_theta": 10000.0}),
    vision_config=BARE | dict(out_hidden_size=32, max_image_size=32), image_token_id=IMAGE, im_start_id=START,
    im_end_id=END, im_newline_id=125),
    _rows, finish=token_types())
