"""Decoders with recurrent or convolution layers among the attention layers."""

from __future__ import annotations

from typing import Any

import torch

from .base import CLIP, END, IMAGE, MOE, OLD, START, TEXT, VIDEO, Layout, Media, Runs, add, patches, text, token_types
from .qwen_like import DEEPSTACK, IDS, mrope, video

# A family a few lines:
# fmt: off

BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k not in ("model_type", "image_size")}
MIXED = ["linear_attention", "full_attention"] * 3
QWEN_VISION: dict[str, Any] = {k: v for k, v in DEEPSTACK.items() if k != "deepstack_visual_indexes"}
DELTA = TEXT | dict(
    num_hidden_layers=6, layer_types=MIXED, head_dim=16, linear_conv_kernel_dim=3, linear_key_head_dim=8,
    linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    rms_norm_eps=5e-2,  # a wide one keeps the gated norms from blowing up rounding
    rope_parameters=mrope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
)
LFM: dict[str, Any] = dict(
    num_hidden_layers=6, layer_types=["conv", "full_attention"] * 3, conv_L_cache=3, block_multiple_of=8, norm_eps=1e-2
)

add("qwen3_5", lambda: dict(text_config=DELTA, vision_config=QWEN_VISION, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())
add("qwen3_5_moe", lambda: dict(
    text_config=DELTA | MOE | {"shared_expert_intermediate_size": 16}, vision_config=QWEN_VISION, **IDS),
    patches(), video=video(split_frames=True), finish=token_types())
def qwen4(budget: int = 512) -> dict[str, Any]:
    """Qwen 4: several residual streams, n-gram embeddings, an index whose budget may be less than the sequence."""
    return dict(text_config=DELTA | MOE | dict(
        shared_expert_intermediate_size=16, hc_count=2,
        eos_token_id=3, hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=budget,
        indexer_compress_ratio=4, ple_layer_ids=[1, 3], ple_embed_dim=16, ngram_vocab_size_base=64, heads_per_ngram=2,
        make_ngram_vocab_size_divisible_by=8, split_ngram_parts=1),
        vision_config=QWEN_VISION, **IDS)


add("qwen4_exp", qwen4, patches(), video=video(split_frames=True), finish=token_types())
add("qwen4_exp_beyond", lambda: qwen4(8), patches(), finish=token_types(), kind="qwen4_exp", beyond=True)


def _shaped(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """LFM2: patches padded to the largest picture, with their mask and shapes."""
    sizes = [(6, 8), (4, 4), (8, 4)]
    flat = [sizes[size] for sample in pictures for size in sample]
    pixels = torch.randn(len(flat), 48, 48, generator=generator)
    mask = torch.zeros(len(flat), 48, dtype=torch.long)
    for i, (h, w) in enumerate(flat):
        mask[i, : h * w] = 1
    pixels *= mask[..., None]
    inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(flat)}
    return inputs, [[[IMAGE] * (sizes[s][0] * sizes[s][1] // 4) for s in sample] for sample in pictures]


def strip(factor: int, sizes: list[tuple[int, int]], moving: bool = False) -> Media:
    """MiniCPM: all patches of all pictures side by side in one strip of pixels."""
    names = ("pixel_values_videos", "target_sizes_videos") if moving else ("pixel_values", "target_sizes")

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        flat = [sizes[size] for sample in pictures for size in sample]
        total = sum(h * w for h, w in flat)
        inputs = {names[0]: torch.randn(1, 3, 4, 4 * total, generator=generator), names[1]: torch.tensor(flat)}
        token = VIDEO if moving else IMAGE
        counts = [h * w // factor for h, w in sizes]
        runs = [[[START, *([token] * counts[size]), END] for size in sample] for sample in pictures]
        return inputs, runs

    return media


add("lfm2_vl", lambda: dict(
    text_config=text("lfm2", **LFM), vision_config=BARE | dict(model_type="siglip2_vision_model", num_patches=16,
                                                               vision_use_head=False),
    image_token_id=IMAGE, projector_hidden_size=32),
    _shaped)
add("lfm3_vl", lambda: dict(
    text_config=text("lfm3", head_dim=8, **LFM), projector_hidden_size=32,
    vision_config=dict(hidden_size=24, intermediate_size=32, patch_size=4, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, layer_types=["conv", "full_attention"]), **IDS),
    patches(), video=video())
WIDE, NARROW = [(8, 16)] * 3 if OLD else [(8, 16), (8, 8), (16, 8)], [(6, 8), (4, 4), (8, 4)]
MINICPM: dict[str, Any] = dict(
    text_config=DELTA | {"model_type": "qwen3_5_text"}, vision_config=BARE | dict(image_size=64), insert_layer_id=0,
    image_token_id=IMAGE, video_token_id=VIDEO,
)
add("minicpm_ocr", lambda: MINICPM, strip(4, NARROW), video=strip(4, NARROW, moving=True))
add("minicpmv4_6", lambda: MINICPM, strip(16, WIDE), video=strip(16, WIDE, moving=True))
add("minicpmv4_7", lambda: MINICPM | dict(
    image_start_id=START, image_end_id=END, slice_start_id=116, slice_end_id=117, newline_id=125),
    strip(16, WIDE), video=strip(16, WIDE, moving=True), finish=token_types())
def _unlimited(model: torch.nn.Module) -> None:
    """The dense model itself clamps its time steps in a prefill, and not at decode: without limits both agree."""
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))


add("nemotron_h_omni", lambda: dict(
    text_config=text(
        "nemotron_h", head_dim=8, mamba_num_heads=4, mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=8,
        conv_kernel=3, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, use_mamba_kernels=False,
        layers_block_type=["linear_attention", "full_attention", "mlp", "linear_attention", "moe", "full_attention"],
        num_hidden_layers=6),
    vision_config=BARE | dict(model_type="radio", mlp_ratio=2.0, image_size=32, max_img_size=32, num_cls_tokens=1,
                              num_registers=1, video_temporal_patch_size=2, summary_idxs=[0]),
    audio_config=None, vision_hidden_size=24, projector_hidden_size=32, image_token_id=IMAGE, video_token_id=VIDEO,
    audio_token_id=124),
    patches(temporal=1, keys=("pixel_values", "image_grid_hw"), timed=False), tune=_unlimited)


def _cubes(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Inkling: each token is a patch of its own."""
    counts = (12, 6, 8)
    total = sum(counts[size] for sample in pictures for size in sample)
    runs = [[[START, *([IMAGE] * counts[size])] for size in sample] for sample in pictures]
    return {"pixel_values": torch.randn(total, 2, 4, 4, 3, generator=generator)}, runs


def _blocks(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Inkling 2: each token is a block of 2 × 2 patches; the grid counts blocks."""
    grids = [[(1, 3, 4), (1, 2, 2), (1, 4, 2)][size] for sample in pictures for size in sample]
    total = sum(h * w for _, h, w in grids)
    runs = [[[START, *([IMAGE] * (12, 4, 8)[size])] for size in sample] for sample in pictures]
    pixels = torch.randn(total, 8, 8, 3, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}, runs


INKLING: dict[str, Any] = TEXT | dict(
    num_hidden_layers=6, layer_types=["hybrid_sliding", "hybrid"] * 3, head_dim=8, swa_num_attention_heads=4,
    swa_num_key_value_heads=2, swa_head_dim=8, sliding_window_size=8, d_rel=4, rel_extent=16, conv_kernel_size=3,
    moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, route_scale=1.0,
)
add("inkling_mm_model", lambda: dict(
    text_config=INKLING | dict(n_shared_experts=1, logits_mup_width_multiplier=1.0, mlp_layer_types=[
        "dense", "sparse", "sparse", "sparse", "sparse", "sparse"]),
    vision_config=dict(patch_size=4, temporal_patch_size=2, hidden_size=24, num_hidden_layers=4),
    audio_config=dict(n_mel_bins=4, mel_vocab_size=8), image_token_id=IMAGE, audio_token_id=124,
    image_bos_token_id=START, audio_bos_token_id=125),
    _cubes)
INKLING2: dict[str, Any] = INKLING | dict(n_layers_per_attn_res_block=2, log_scaling_n_floor=8, unpadded_vocab_size=128)
INKLING2_VISION: dict[str, Any] = BARE | dict(
    posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=32, mlp_ratio=2.0)
add("inkling2", lambda: dict(text_config=INKLING2, vision_config=INKLING2_VISION, image_token_id=IMAGE),
    _blocks, attn=("eager",))
add("inkling2_loop", lambda: dict(
    text_config=INKLING2 | dict(loop_layer_index_start=2, loop_layer_index_end=4, loop_num_passes=2),
    vision_config=INKLING2_VISION, image_token_id=IMAGE),
    _blocks, attn=("eager",), refused="layers run several times in a forward pass")
