"""The entries of the mapping whose visual tokens never stand in a decoder's sequence, built where that is cheap."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import CLIP, DEPTH, END, IMAGE, SIGLIP, START, TEXT, VOCAB, add, fixed, text
from .gemma import GEMMA, TOWER
from .queries import QFORMER

# A family a few lines:
# fmt: off

BARE: dict[str, Any] = {k: v for k, v in CLIP.items() if k != "model_type"}
BERT: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
BART: dict[str, Any] = dict(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128, pad_token_id=0,
    bos_token_id=1, eos_token_id=None, decoder_start_token_id=1, forced_eos_token_id=None, dropout=0.0,
)
T5: dict[str, Any] = dict(
    model_type="t5", vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
    pad_token_id=0, eos_token_id=None, decoder_start_token_id=0,
)
ENCODER = "visual tokens stand in the encoder's sequence"
CROSS = "visual tokens reach the decoder by cross-attention alone"


def _starts(pictures: int) -> torch.Tensor:
    return torch.ones(pictures, 1, dtype=torch.long)


def _pair(config: Any, attn: str) -> nn.Module:
    """A vision-encoder-decoder model has its own way to be made."""
    from transformers import VisionEncoderDecoderModel

    return VisionEncoderDecoderModel._from_config(config, attn_implementation=attn)


def _protein(config: Any, attn: str) -> nn.Module:
    """The auto class does not find Evolla."""
    from transformers import EvollaForProteinText2Text

    return EvollaForProteinText2Text._from_config(config, attn_implementation=attn)


for _name in ("blip-2", "instructblip"):
    _more = {"qformer_input_ids": lambda n: torch.arange(5, 11).repeat(n, 1)} if _name == "instructblip" else {}
    add(f"{_name}_t5", lambda: dict(
        vision_config=BARE, qformer_config=QFORMER, text_config=T5, num_query_tokens=8, image_token_index=IMAGE),
        fixed(8, decoder_input_ids=_starts, **_more), kind=_name, attn=("eager",), variants=(),
        refused=f"{ENCODER}: its language model is a T5")
add("florence2", lambda: dict(
    text_config=BART | {"model_type": "bart"}, image_token_id=IMAGE,
    vision_config=dict(depths=[1, 1], patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1], embed_dim=[16, 24],
                       patch_prenorm=[False, True], num_heads=[2, 2], num_groups=[2, 2], window_size=4,
                       projection_dim=32, drop_path_rate=0.0)),
    fixed(17, (3, 32, 32), decoder_input_ids=_starts), attn=("eager",), variants=(), refused=ENCODER)
add("t5gemma2", lambda: dict(
    encoder=dict(text_config=GEMMA, vision_config=SIGLIP, mm_tokens_per_image=16, boi_token_index=START,
                 eoi_token_index=END, image_token_index=IMAGE),
    decoder=GEMMA, image_token_index=IMAGE, eoi_token_index=END),
    fixed(16, decoder_input_ids=_starts), attn=("eager",), variants=(), refused=ENCODER)
add("udop", lambda: dict(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, image_size=16, patch_size=4,
    pad_token_id=0, eos_token_id=None),
    attn=("eager",), variants=(), refused=ENCODER)
add("blip", lambda: dict(
    text_config=BERT | {"encoder_hidden_size": 24, "projection_dim": 24}, vision_config=BARE, projection_dim=24),
    attn=("eager",), variants=(), refused=CROSS)
add("mllama", lambda: dict(
    text_config=TEXT | {"cross_attention_layers": [1, 3]}, image_token_index=IMAGE,
    vision_config=dict(
        hidden_size=24, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=32,
        vision_output_dim=48, image_size=16, patch_size=4, max_num_tiles=1, intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1]])),
    variants=(), refused=CROSS)
add("idefics", lambda: {k: v for k, v in TEXT.items() if k != "num_key_value_heads"} | dict(
    vision_config=dict(embed_dim=24, image_size=16, intermediate_size=32, patch_size=4, num_hidden_layers=2,
                       num_attention_heads=2)),
    variants=(), refused=CROSS)
add("evolla", lambda: TEXT | dict(
    protein_encoder_config=dict(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                intermediate_size=32, max_position_embeddings=64),
    aligner_num_add_layers=2, resampler_depth=1, resampler_dim_head=8, resampler_heads=2, resampler_num_latents=4),
    build=_protein, variants=(), refused="its input is a protein, and reaches the decoder by cross-attention")
add("pix2struct", lambda: dict(
    text_config=dict(vocab_size=VOCAB, hidden_size=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0),
    vision_config=dict(hidden_size=32, patch_embed_hidden_size=48, d_ff=48, d_kv=8, num_hidden_layers=2,
                       num_attention_heads=4, seq_len=16)),
    attn=("eager",), variants=(), refused=CROSS)
add("pp_formulanet", lambda: dict(
    text_config=BART, vision_config=dict(
        hidden_size=24, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4,
        window_size=4, global_attn_indexes=[1], mlp_dim=32, post_conv_in_channels=8, post_conv_out_channels=16,
        post_conv_mid_channels=12, decoder_hidden_size=32)),
    attn=("eager",), variants=(), refused=CROSS)
add("vision-encoder-decoder", lambda: dict(
    encoder=BARE | {"model_type": "vit"},
    decoder=BERT | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True}),
    build=_pair, variants=(), refused=CROSS)
add("git", lambda: BERT | {"vision_config": BARE}, attn=("eager",), variants=(),
    refused="the picture is a prefix without placeholders in input_ids")
add("pi0", lambda: dict(
    vlm_config=dict(
        model_type="paligemma", text_config=text("gemma", head_dim=8), vision_config=SIGLIP, image_token_index=IMAGE,
        projection_dim=32, hidden_size=32, vocab_size=VOCAB),
    dit_config=text("gemma", head_dim=8), chunk_size=4, max_state_dim=4, max_action_dim=4),
    variants=(), refused="it makes actions by flow matching, not text")
add("diffusion_gemma", lambda: dict(
    text_config=GEMMA | dict(global_head_dim=8, num_experts=4, top_k_experts=2, moe_intermediate_size=16),
    vision_config=TOWER, boi_token_id=START, eoi_token_id=END, image_token_id=IMAGE, canvas_length=8),
    variants=(), refused="it writes text by block diffusion, not token by token")
add("mistral4", lambda: TEXT | dict(
    kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=16, num_key_value_heads=4, num_hidden_layers=DEPTH),
    variants=(), refused="a language model without pictures")
