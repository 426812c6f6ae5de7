"""Gemma 3n and 4, and families whose vision tower comes from timm."""

from __future__ import annotations

from typing import Any

import torch

from .base import END, IMAGE, OLD, START, TEXT, VIDEO, Layout, Media, Runs, add, fixed, text, token_types

# A family a few lines:
# fmt: off

MIXED = ["sliding_attention", "full_attention"] * 3
CONVNET: dict[str, Any] = dict(model_type="timm_wrapper", architecture="test_convnext", hidden_size=64)
GEMMA = TEXT | dict(head_dim=8, num_hidden_layers=6, layer_types=MIXED, sliding_window=8)
GEMMA4: dict[str, Any] = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, boi_token_id=START, eoi_token_id=END, audio_token_id=124,
    boa_token_id=125, eoa_token_index=126,
)
TOWER: dict[str, Any] = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=12, patch_size=4, pooling_kernel_size=2, position_embedding_size=16,
)


def placed(width: int, pool: int, video: bool = False) -> Media:
    """Patches with their (x, y), padded with -1: Gemma 4."""
    sizes = [(6, 8), (4, 4), (8, 4)]

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        frames = 2 if video else 1
        flat = [sizes[size] for sample in pictures for size in sample for _ in range(frames)]
        most = max(h * w for h, w in sizes) // pool**2
        where = torch.full((len(flat), most, 2), -1)
        pixels = torch.rand(len(flat), most, width, generator=generator) * 4
        for i, (h, w) in enumerate(flat):
            rows, columns = h // pool, w // pool
            grid = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
            where[i, : rows * columns] = grid.reshape(-1, 2)
            pixels[i, rows * columns :] = 0
        names = ("pixel_values_videos", "video_position_ids") if video else ("pixel_values", "image_position_ids")
        inputs: dict[str, Any] = {names[0]: pixels, names[1]: where}
        if video and OLD:
            inputs = {name: value.unflatten(0, (-1, 2)) for name, value in inputs.items()}
        elif video:
            inputs["num_frames_per_video"] = torch.full((len(flat) // 2,), 2)
        runs: Runs = [[] for _ in pictures]
        for run, sample in zip(runs, pictures, strict=True):
            for size in sample:
                count = sizes[size][0] * sizes[size][1] // 4
                run.append([START, *([VIDEO if video else IMAGE] * count), END] * frames)
        return inputs, runs

    return media


add("gemma3n", lambda: dict(
    text_config=GEMMA | dict(
        vocab_size_per_layer_input=118, hidden_size_per_layer_input=8, num_kv_shared_layers=2, laurel_rank=8,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0, 0.0, 0.0]),
    vision_config=dict(architecture="test_convnext", hidden_size=64, vocab_size=8, vocab_offset=118),
    audio_config=dict(
        hidden_size=16, conf_num_hidden_layers=1, conf_num_attention_heads=2, input_feat_size=16, vocab_size=2,
        vocab_offset=126, sscp_conv_channel_size=[8, 4]),
    image_token_id=IMAGE, audio_token_id=127, vision_soft_tokens_per_image=9),
    fixed(9, (3, 96, 96), start=(START,), end=(END,)))
add("gemma4", lambda: dict(
    text_config=GEMMA | dict(
        global_head_dim=8, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, num_kv_shared_layers=2),
    vision_config=TOWER, audio_config=None, **GEMMA4),
    placed(48, 1), video=placed(48, 1, video=True), finish=token_types())
add("gemma4_moe", lambda: dict(
    text_config=GEMMA | dict(
        global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True, hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision", enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=16),
    vision_config=TOWER, audio_config=None, **GEMMA4),
    placed(48, 1), video=placed(48, 1, video=True), finish=token_types(), kind="gemma4")
add("gemma4_unified", lambda: dict(
    text_config=GEMMA | dict(global_head_dim=8),
    vision_config=dict(patch_size=4, pooling_kernel_size=2, mm_embed_dim=24, mm_posemb_size=16, output_proj_dims=24),
    audio_config=None, **GEMMA4),
    placed(192, 2), video=placed(192, 2, video=True), finish=token_types())
add("fast_vlm", lambda: dict(text_config=text("qwen2"), vision_config=CONVNET, image_token_index=IMAGE),
    fixed(9, (3, 96, 96)))
add("perception_lm", lambda: dict(
    text_config=text("llama"), image_token_id=IMAGE, video_token_id=VIDEO, projector_pooling_ratio=2,
    vision_config=dict(
        model_type="timm_wrapper", architecture="vit_pe_core_tiny_patch16_384", do_pooling=False,
        model_args=dict(embed_dim=32, img_size=[24, 24], patch_size=4, depth=2, num_heads=2, global_pool="",
                        use_post_transformer_norm=False, ref_feat_shape=[6, 6]))),
    fixed(9, (1, 3, 24, 24)), video=fixed(18, (2, 3, 24, 24), "pixel_values_videos", VIDEO))
