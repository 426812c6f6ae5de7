"""A Q-Former or a set of latent queries between the vision encoder and the decoder: BLIP-2 and Kosmos."""

from __future__ import annotations

from typing import Any

import torch

from .base import CLIP, END, IMAGE, OLD, START, VIDEO, Layout, Runs, add, fixed, text

# A family a few lines:
# fmt: off

VISION: dict[str, Any] = {k: v for k, v in CLIP.items() if k != "model_type"}
QFORMER: dict[str, Any] = dict(
    vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=64, encoder_hidden_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
OPT = {
    k: v for k, v in text("opt", ffn_dim=48, word_embed_proj_dim=32, dropout=0.0).items() if k != "intermediate_size"
}
KOSMOS: dict[str, Any] = dict(
    vocab_size=128, embed_dim=32, layers=4, ffn_dim=48, attention_heads=4, max_position_embeddings=512, dropout=0.0,
    attention_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)


def _question(pictures: int) -> torch.Tensor:
    return torch.arange(6).repeat(pictures, 1) + 5 + torch.arange(pictures)[:, None]


def _mark(inputs: dict[str, Any]) -> None:
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()


def _flat(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
    """Flattened patches, each after its row and column."""
    total = sum(map(len, pictures))
    place = torch.arange(16).repeat(total, 1)
    where = torch.stack([place // 4 + 1, place % 4 + 1], -1).float()
    flat = torch.cat([where, torch.randn(total, 16, 48, generator=generator)], -1)
    runs = [[[START, *([IMAGE] * 8), END] for _ in sample] for sample in pictures]
    return {"flattened_patches": flat, "width": torch.full((total,), 4), "height": torch.full((total,), 4)}, runs


add("blip-2", lambda: dict(
    vision_config=VISION, qformer_config=QFORMER, text_config=OPT, num_query_tokens=8, image_token_index=IMAGE),
    fixed(8))
add("instructblip", lambda: dict(
    vision_config=VISION, qformer_config=QFORMER, text_config=text("llama"), num_query_tokens=8,
    image_token_index=IMAGE),
    fixed(8, qformer_input_ids=_question))
add("instructblipvideo", lambda: dict(
    vision_config=VISION, qformer_config=QFORMER, text_config=text("llama"), num_query_tokens=6,
    video_token_index=VIDEO),
    fixed(12, (2, 3, 16, 16), token=VIDEO, qformer_input_ids=_question))
add("kosmos-2", lambda: dict(text_config=KOSMOS, vision_config=VISION, latent_query_num=8),
    fixed(8, start=(START,), end=(END,)), finish=_mark, attn=("eager",) if OLD else ("eager", "sdpa"),
    find=lambda inputs: inputs["image_embeds_position_mask"].bool())
add("kosmos-2.5", lambda: dict(
    text_config=KOSMOS, latent_query_num=8,
    vision_config=VISION | dict(patch_embed_hidden_size=48, head_dim=12, dropout_rate=0.0, max_num_patches=16)),
    _flat, finish=_mark, find=lambda inputs: inputs["image_embeds_position_mask"].bool())
