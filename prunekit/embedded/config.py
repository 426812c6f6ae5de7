"""Sizes of the embedded model, and its construction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from prunekit.embedded.processor import ASSISTANT, BOS, EOS, IMAGE, PAD, build_tokenizer


@dataclass(frozen=True)
class Size:
    """The sizes that shape the model; all in one place."""

    image: int = 192  # pixels
    patch: int = 16  # pixels
    tower_layers: int = 3
    tower_width: int = 192
    tower_mlp: int = 512
    layers: int = 12
    width: int = 192
    mlp: int = 384
    heads: int = 6  # of 32, in tower and decoder

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image // self.patch

    @property
    def visual(self) -> int:
        """Visual tokens of an image."""
        return self.grid**2


def build_model(size: Size, seed: int = 0) -> LlavaForConditionalGeneration:
    """The model with fresh weights, fp32."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    vision = CLIPVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=size.tower_mlp,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.heads,
        image_size=size.image,
        patch_size=size.patch,
        projection_dim=size.tower_width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.width // size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=token(BOS),
        eos_token_id=token(EOS),
        pad_token_id=token(PAD),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=size.visual,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 6
    model.generation_config.do_sample = False
    model.generation_config.bos_token_id = token(BOS)
    model.generation_config.eos_token_id = token(EOS)
    model.generation_config.pad_token_id = token(PAD)
    assert token(ASSISTANT) != tokenizer.unk_token_id
    return model
