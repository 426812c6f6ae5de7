"""Decoders whose attention selects keys by an index."""

from __future__ import annotations

from typing import Any

import torch

from .base import CLIP, IMAGE, TEXT, VIDEO, Layout, Runs, add, patches, sized
from .grids import PICTURES
from .qwen_like import GLM_VISION, GRID, glm, video

# A family a few lines:
# fmt: off

BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k not in ("model_type", "image_size")}
LATENT: dict[str, Any] = dict(
    num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1, index_topk=512,
    index_head_dim=8, index_n_heads=2,
)


def mistral(**changes: Any) -> dict[str, Any]:
    """Mistral Large 4: latent attention, an index in each layer, one layer without positions."""
    latent = {k: v for k, v in LATENT.items() if k != "q_lora_rank"}
    return dict(
        text_config=TEXT | latent | changes, vision_config=CLIP | {"model_type": "pixtral", "image_size": 24},
        image_token_index=IMAGE,
    )


def dots(**changes: Any) -> dict[str, Any]:
    """dots3: latent attention, layers with an index and sliding ones."""
    return dict(
        text_config=TEXT | LATENT | dict(
            num_hidden_layers=6, layer_types=["indexed_attention", "sliding_attention"] * 3, sliding_window=8,
            head_dim=12, shared_experts_intermediate_size=16, swa_num_attention_heads=4, swa_num_key_value_heads=4,
            swa_q_lora_rank=16, swa_kv_lora_rank=16, swa_head_dim=12, swa_qk_nope_head_dim=8, swa_v_head_dim=8,
            **changes),
        vision_config=BARE | dict(
            moe_intermediate_size=16, mlp_layer_types=["dense", "sparse"], num_local_experts=4, num_experts_per_tok=2,
            adapter_in_dim=24, adapter_out_dim=32),
        audio_config=dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, downsample_hidden_size=4,
            feature_size=8, adapter_input_size=16, adapter_out_dim=32),
        audio_token_id=124, **PICTURES,
    )


def minimax(**changes: Any) -> dict[str, Any]:
    """MiniMax M3: full layers and layers that choose blocks."""
    return dict(
        text_config=TEXT | dict(
            head_dim=8, rotary_dim=4, num_hidden_layers=6, layer_types=["full_attention", "minimax_m3_sparse"] * 3,
            num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=48, shared_intermediate_size=16,
            index_n_heads=2, index_head_dim=8, index_block_size=128, index_topk_blocks=4) | changes,
        vision_config=BARE | dict(image_size=32), image_token_index=IMAGE, video_token_index=VIDEO,
        projector_hidden_size=32,
    )


def glm5(**changes: Any) -> dict[str, Any]:
    """GLM 5: linear layers and layers with an index over pooled keys; several residual streams."""
    return glm(text_config=TEXT | LATENT | dict(
        rms_norm_eps=5e-2, num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3,
        qk_rope_head_dim=0, linear_head_dim=8, linear_num_heads=4, linear_conv_kernel_dim=3, hc_mult=2,
        hc_sinkhorn_iters=4, index_kpool=4) | changes) | {
            "vision_config": GLM_VISION | {"projection_intermediate_size": 32}}


SIZES = sized(lambda h, w: h * w // 64, ((24, 24), (16, 24), (16, 16)))
add("mistral_large4", mistral, SIZES)
add("mistral_large4_shared", lambda: mistral(
    num_hidden_layers=6, no_rope_layers=[1, 0, 1, 0, 1, 0], kv_source_layers=[0, 1, 2, 3, 2, 3],
    indexer_types=["full", "full", "full", "shared", "full", "shared"]), SIZES, kind="mistral_large4")
add("mistral_large4_index", lambda: mistral(
    num_hidden_layers=6, indexer_types=["full", "shared", "full", "shared", "shared", "full"]), SIZES,
    kind="mistral_large4")
add("dots3_note", dots, patches(temporal=1), video=video(temporal=1))
add("minimax_m3_vl", minimax, patches(), video=video())


def _spans(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """GLM 5 writes videos with image tokens between its video marks."""
    moving = patches(frames=2, sizes=((4, 4), (4, 4), (4, 6)), split_frames=True, keys=GRID)
    inputs, runs = moving(pictures, generator)
    return inputs, [[[112, *run, 113] for run in sample] for sample in runs]


add("glm5_next", glm5, patches(), video=_spans, gain=0.8)
add("mistral_large4_beyond", lambda: mistral(index_topk=8), SIZES, kind="mistral_large4", beyond=True)
add("dots3_note_beyond", lambda: dots(index_topk=8), patches(temporal=1), kind="dots3_note", beyond=True)
add("minimax_m3_vl_beyond", lambda: minimax(index_block_size=4, index_topk_blocks=2), patches(),
    kind="minimax_m3_vl", beyond=True)
add("glm5_next_beyond", lambda: glm5(index_topk=8), patches(), kind="glm5_next", beyond=True)
