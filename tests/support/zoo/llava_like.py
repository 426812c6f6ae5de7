"""A vision encoder, a projector, a decoder of the Llama kind: LLaVA and its descendants."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .base import (
    CLIP,
    END,
    IMAGE,
    OLD,
    SIGLIP,
    START,
    TEXT,
    VIDEO,
    Layout,
    Media,
    Runs,
    add,
    boxed,
    fixed,
    sized,
    text,
    token_types,
)

# A family a few lines:
# fmt: off

PINPOINTS = [[8, 16], [16, 8], [16, 16]]
TILE = CLIP | {"image_size": 8}  # 2 × 2 patches
CLIP12 = CLIP | {"image_size": 12}  # 3 × 3 patches


BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k != "model_type"}
PIXTRAL = CLIP | {"model_type": "pixtral", "image_size": 24}
INTERN = BARE | {"image_size": [24, 24], "patch_size": [4, 4]}
MIXED = ["sliding_attention", "full_attention"] * 3
COHERE: dict[str, Any] = dict(num_hidden_layers=6, layer_types=MIXED, sliding_window=8, logit_scale=1.0)
GEMMA3 = TEXT | dict(head_dim=8, num_hidden_layers=6, layer_types=MIXED, sliding_window=8, query_pre_attn_scalar=8)
GEMMA3_IDS: dict[str, Any] = dict(
    vision_config=SIGLIP | {"image_size": 32}, mm_tokens_per_image=16, boi_token_index=START, eoi_token_index=END,
    image_token_index=IMAGE,
)


def tiles(counts: bool = False, side: int = 8) -> Media:
    """LLaVA-NeXT's tiles of 2 × 2 features, with a newline token for each row of them; the first tile is the whole."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        many = counts and any(len(sample) > 1 for sample in pictures)
        sizes, runs = [], []
        for sample in pictures:
            whole = many and len(sample) > 1  # several pictures: LLaVA-OneVision tiles none of them
            sizes += [[(2 * side, 2 * side), (side, 2 * side), (2 * side, side)][size] for size in sample]
            runs.append([[IMAGE] * (5 if whole else [24, 14, 16][size]) for size in sample])
        inputs: dict[str, Any] = {"image_sizes": torch.tensor(sizes)}
        inputs["pixel_values"] = torch.randn(len(sizes), 5, 3, side, side, generator=generator)
        if many:
            inputs["batch_num_images"] = torch.tensor([len(sample) for sample in pictures])
        return inputs, runs

    return media


def frames(count: int, number: int, side: int) -> Media:
    """Videos of ``number`` frames, ``count`` tokens in all."""
    return fixed(count, (number, 3, side, side), "pixel_values_videos", VIDEO)


def _prefix(inputs: dict[str, Any]) -> None:
    """PaliGemma's prompt is all prefix: bidirectional."""
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])


add("llava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP, image_token_index=IMAGE),
    fixed(16))
add("llava_next", lambda: dict(
    text_config=text("llama"), vision_config=TILE, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS),
    tiles())
add("llava_next_video", lambda: dict(
    text_config=text("llama"), vision_config=TILE, image_token_index=IMAGE, video_token_index=VIDEO,
    image_grid_pinpoints=PINPOINTS),
    tiles(), video=frames(8, 8, 8))
add("llava_onevision", lambda: dict(
    text_config=text("qwen2"), vision_config=SIGLIP | {"image_size": 8}, image_token_index=IMAGE,
    video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS),
    tiles(counts=True), video=frames(9, 8, 8))
add("video_llava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP12, image_token_index=IMAGE, video_token_index=VIDEO),
    fixed(9, (3, 12, 12), "pixel_values_images" if OLD else "pixel_values"), video=frames(20, 2, 12))
add("vipllava", lambda: dict(
    text_config=text("llama"), vision_config=CLIP, image_token_index=IMAGE, vision_feature_layers=(-2, -1)),
    fixed(16))
add("llava_pixtral", lambda: dict(
    text_config=text("mistral"), vision_config=PIXTRAL, image_token_index=IMAGE, vision_feature_layer=-1,
    vision_feature_select_strategy="full"),
    sized(lambda h, w: h * w // 16, ((16, 16), (8, 16), (16, 8))), kind="llava")
add("mistral3", lambda: dict(text_config=text("mistral"), vision_config=PIXTRAL, image_token_index=IMAGE),
    sized(lambda h, w: h * w // 64, ((24, 24), (16, 24), (16, 16))))
add("internvl", lambda: dict(
    text_config=text("qwen2"), vision_config=INTERN, image_token_id=IMAGE, image_seq_length=9),
    fixed(9, (3, 24, 24)))
add("aya_vision", lambda: dict(
    text_config=text("cohere2", **COHERE), vision_config=SIGLIP | {"image_size": 24}, image_token_index=IMAGE),
    fixed(9, (3, 24, 24)))
add("cohere2_vision", lambda: dict(
    text_config=text("cohere2", **COHERE), vision_config=SIGLIP | {"image_size": 24}, image_token_id=IMAGE,
    alignment_intermediate_size=48),
    fixed(9, (3, 24, 24)))
def idefics2(**changes: Any) -> dict[str, Any]:
    """Idefics 2 over Mistral."""
    return dict(text_config=text("mistral", **changes), vision_config=BARE, image_token_id=IMAGE,
        perceiver_config=dict(hidden_size=32, resampler_n_latents=8, resampler_depth=2, resampler_n_heads=2,
                              num_key_value_heads=1, resampler_head_dim=12))


add("idefics2", idefics2, boxed(8))
add("idefics2_sliding", lambda: idefics2(sliding_window=8), boxed(8), kind="idefics2")
for _name in ("idefics3", "smolvlm"):
    add(_name, lambda: dict(
        text_config=text("llama"), vision_config=BARE | {"image_size": 24}, image_token_id=IMAGE, scale_factor=2,
        pad_token_id=0),
        boxed(9, 24))
add("paligemma", lambda: dict(
    text_config=text("gemma", head_dim=8), vision_config=SIGLIP, image_token_index=IMAGE, projection_dim=32,
    hidden_size=32, vocab_size=128),
    fixed(16), front=True, prefix=(), finish=_prefix)
add("paligemma2", lambda: dict(
    text_config=text("gemma2", head_dim=8, num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=8),
    vision_config=SIGLIP, image_token_index=IMAGE, projection_dim=32, hidden_size=32, vocab_size=128),
    fixed(16), front=True, prefix=(), kind="paligemma", attn=("eager",), finish=_prefix)
add("gemma3", lambda: dict(text_config=GEMMA3, **GEMMA3_IDS),
    fixed(16, (3, 32, 32), start=(START,), end=(END,)), finish=token_types("token_type_ids"))
add("shieldgemma2", lambda: dict(text_config=GEMMA3, **GEMMA3_IDS),
    fixed(16, (3, 32, 32), start=(START,), end=(END,)), finish=token_types("token_type_ids"))
add("deepseek_vl", lambda: dict(text_config=text("llama"), vision_config=SIGLIP, image_token_id=IMAGE),
    fixed(16))
add("aria", lambda: dict(
    text_config=text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1), image_token_index=IMAGE,
    vision_config=BARE | {"model_type": "idefics3_vision"}, projector_patch_to_query_dict={16: 8}),
    fixed(8, pixel_mask=lambda n: torch.ones(n, 16, 16, dtype=torch.bool)))
add("ovis2", lambda: dict(
    text_config=text("qwen2"), image_token_id=IMAGE, visual_indicator_token_ids=[110, 111, 112, 113, 114],
    vocab_size=128, hidden_size=32, vision_config=BARE | dict(image_size=24, vocab_size=37, hidden_stride=2)),
    fixed(9, (3, 24, 24), start=(110,), end=(111,)))
def llama4(**changes: Any) -> dict[str, Any]:
    """Llama 4: layers that attend within chunks, layers without positions, experts in every other layer."""
    return dict(
        text_config=text("llama4_text", head_dim=8, intermediate_size_mlp=48, num_local_experts=4, num_hidden_layers=6,
                         interleave_moe_layer_step=2, no_rope_layers=[1, 0, 1, 0, 1, 0], attention_chunk_size=16,
                         **changes),
    vision_config=BARE | dict(image_size=24, intermediate_size=96, vision_output_dim=32, projector_input_dim=32,
                              projector_output_dim=32),
    image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END)


# of this release alone: whether a later one is mended, the tests find out
LLAMA4_FAULT = (
    "every forward pass of transformers 5.24.0's own code raises AttributeError: it reads image_outputs of its "
    "language model's output, which has none" if transformers.__version__ == "5.24.0" else "")


def _give_image_outputs(model: torch.nn.Module) -> None:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        output.image_outputs = None

    model.language_model.register_forward_hook(hook)  # type: ignore[operator, union-attr]


add("llama4", llama4, fixed(9, (3, 24, 24), start=(START,), end=(END,)), broken=LLAMA4_FAULT, mend=_give_image_outputs)
add("llama4_tempered", lambda: llama4(floor_scale=8, attn_scale=0.5), fixed(9, (3, 24, 24), start=(START,), end=(END,)),
    kind="llama4", broken=LLAMA4_FAULT, mend=_give_image_outputs)
add("lighton_ocr", lambda: dict(
    text_config=text("qwen3", head_dim=8), vision_config=PIXTRAL, image_token_id=IMAGE),
    sized(lambda h, w: h * w // 64, ((24, 24), (16, 24), (16, 16))))
add("qianfan_ocr", lambda: dict(
    text_config=text("qwen3", head_dim=8), vision_config=INTERN | {"drop_path_rate": 0.0}, image_token_id=IMAGE,
    image_seq_length=9),
    fixed(9, (3, 24, 24)))
add("granite4_vision", lambda: dict(
    text_config=TEXT | dict(num_hidden_layers=6, attention_multiplier=0.35),
    vision_config=SIGLIP | dict(hidden_size=64, num_attention_heads=1), image_token_index=IMAGE,
    image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]], downsample_rate="1/2", projector_dropout=0.0,
    vision_feature_select_strategy="full", deepstack_layer_map=[[-2, 0], [-1, 1]], spatial_target_layers=[1, 2, 3, 4],
    qformer_config=dict(
        model_type="blip_2_qformer", hidden_size=64, encoder_hidden_size=64, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    tiles(side=16))


def _tiled(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """GraniteDocling: a mask says which tiles of a sample are real."""
    inputs, runs = boxed(9, 24)(pictures, generator)
    inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"][:, :, 0, 0].bool()
    return inputs, runs


add("granite_docling", lambda: dict(
    text_config=TEXT | dict(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=0.5,
                            attention_multiplier=0.35),
    vision_config=BARE | dict(image_size=24, out_hidden_size=32, scale_factor=2, deepstack_visual_indexes=[0, 1]),
    image_token_id=IMAGE, pad_token_id=0),
    _tiled)


def _local(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Step 3.7: some pictures have a local view."""
    views = [[1, 0, 0][size] for sample in pictures for size in sample]
    inputs: dict[str, Any] = {"pixel_values": torch.randn(len(views), 3, 48, 48, generator=generator)}
    inputs["pixel_values_local"] = torch.randn(sum(views), 3, 32, 32, generator=generator)
    inputs["num_local_patches"] = views
    return inputs, [[[IMAGE] * [13, 9, 9][size] for size in sample] for sample in pictures]


add("step3p7", lambda: dict(
    text_config=TEXT | dict(
        head_dim=8, num_hidden_layers=6, layer_types=MIXED, sliding_window=8, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, share_expert_dim=16),
    vision_config=BARE | dict(image_size=48, mlp_ratio=2.0, max_position_embeddings=144), image_token_id=IMAGE),
    _local)


def _pooled(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Molmo 2: crops of 6 × 6 patches, each token pools 2 × 2 of them; small pictures use part of a crop."""
    flat = [[(3, 3), (2, 3), (2, 2)][size] for sample in pictures for size in sample]
    pooling = [
        [36 * crop + (2 * i + a) * 6 + 2 * j + b for a in (0, 1) for b in (0, 1)]
        for crop, (rows, columns) in enumerate(flat) for i in range(rows) for j in range(columns)
    ]
    inputs = {
        "pixel_values": torch.randn(len(flat), 36, 48, generator=generator),
        "image_token_pooling": torch.tensor(pooling),
        "image_grids": torch.tensor([[h, w, 0, 0] for h, w in flat]),
        "image_num_crops": torch.ones(len(flat), dtype=torch.long),
    }
    counts = (9, 6, 4)
    return inputs, [[[START, *([IMAGE] * counts[size]), END] for size in sample] for sample in pictures]


add("molmo2", lambda: dict(
    text_config=TEXT | dict(head_dim=8),
    vision_config=BARE | dict(image_size=[24, 24], num_key_value_heads=2, head_dim=12),
    adapter_config=dict(vision_feature_layer=[-1, -2], hidden_size=24, num_attention_heads=2, num_key_value_heads=2,
                        head_dim=12, intermediate_size=32, text_hidden_size=32),
    image_start_token_id=START, low_res_image_start_token_id=116, image_end_token_id=END, image_patch_id=IMAGE,
    frame_start_token_id=117, frame_end_token_id=118),
    _pooled, finish=token_types())
