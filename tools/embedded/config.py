"""Sizes of the embedded model, and its construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from prunekit.data.scene import CELLS
from prunekit.data.words import CORNERS
from tools.embedded.processor import ASSISTANT, BOS, CELL_NAMES, EOS, IMAGE, PAD, build_tokenizer, piece

MARK = 0.5  # length of a row's and of a column's mark in the tower's position embeddings


@dataclass(frozen=True)
class Size:
    """The sizes that shape the model; all in one place."""

    image: int = 192  # pixels; pictures of other sizes are resized to it
    patch: int = 16  # pixels
    tower_layers: int = 4
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
        initializer_range=size.width**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
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
    start_looking(model, size.heads // 2)
    mark_places(model, size)
    model.generation_config.max_new_tokens = 6
    model.generation_config.do_sample = False
    model.generation_config.bos_token_id = token(BOS)
    model.generation_config.eos_token_id = token(EOS)
    model.generation_config.pad_token_id = token(PAD)
    assert token(ASSISTANT) != tokenizer.unk_token_id
    return model


@torch.no_grad()
def start_looking(model: LlavaForConditionalGeneration, heads: int) -> None:
    """A start from which look-ups by name are learned sooner; it is the same for all tokens and trained like the rest.

    In the first heads of every decoder layer the keys equal the queries in the slow half of the rotary frequencies and
    are their negative in the fast half: like attends to like at a distance, not to itself. The MLPs'
    outputs start small, so that the words' embeddings reach every layer.
    """
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        width = attention.head_dim
        slow = (torch.arange(heads * width) % (width // 2)) >= width // 4
        queries = attention.q_proj.weight[: heads * width] * 1.4
        attention.q_proj.weight[: heads * width] = queries
        attention.k_proj.weight[: heads * width] = torch.where(slow[:, None], queries, -queries)
        layer.mlp.down_proj.weight.mul_(0.2)


@torch.no_grad()
def start_words(model: LlavaForConditionalGeneration, spread: float = 0.3) -> None:
    """Fresh word embeddings; places of a row or column share a part. The output head starts like them."""
    tokenizer, words = build_tokenizer(), model.model.language_model.embed_tokens.weight
    words.normal_(0, spread)
    lines = torch.randn(2, CELLS, words.shape[1]) * spread
    cells = {name: divmod(index, CELLS) for index, name in enumerate(CELL_NAMES)}
    for name, (row, column) in {**cells, **CORNERS}.items():
        word = tokenizer.convert_tokens_to_ids(piece(name))
        words[word] = (lines[0, row] + lines[1, column] + 0.5 * words[word]) / 1.5
    model.lm_head.weight.copy_(0.3 * F.normalize(words, dim=-1))


@torch.no_grad()
def mark_places(model: LlavaForConditionalGeneration, size: Size) -> None:
    """Starts the tower's position embeddings with a direction for each row and each column.

    What patches show can be learned without knowing where they are, so that places would reach the decoder too faintly.
    """
    directions = torch.linalg.qr(torch.randn(size.tower_width, 2 * size.grid)).Q.T
    place = torch.arange(size.visual)
    tower = model.model.vision_tower
    embeddings = tower.embeddings if hasattr(tower, "embeddings") else tower.vision_model.embeddings
    marks = directions[place // size.grid] + directions[size.grid + place % size.grid]
    embeddings.position_embedding.weight[1:] += MARK * marks


@torch.no_grad()
def arrange(
    source: LlavaForConditionalGeneration, order: Sequence[int | None], size: Size, seed: int = 0
) -> LlavaForConditionalGeneration:
    """A model of ``size`` with the layers ``order`` of ``source``, and all else that it has.

    None stands for a new layer, which adds nothing at first (its output projections are zero).
    """
    model = build_model(size, seed)
    own = {name: value for name, value in source.state_dict().items() if ".layers." not in name or "vision" in name}
    model.load_state_dict(own, strict=False)
    for layer, place in zip(model.model.language_model.layers, order, strict=True):
        if place is None:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        else:
            layer.load_state_dict(source.model.language_model.layers[place].state_dict())
    return model


@torch.no_grad()
def resized(source: LlavaForConditionalGeneration, size: Size) -> LlavaForConditionalGeneration:
    """A model for images of another size with the weights of ``source``; the tower's positions are interpolated."""
    model, state = build_model(size), source.state_dict()
    for name, value in model.state_dict().items():
        if value.shape != state[name].shape:
            state[name] = _interpolated(state[name], size.grid)
    model.load_state_dict(state)
    return model


def _interpolated(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embeddings [1 + P, D], the CLS token's first, for a square of ``grid`` patches a side."""
    own, patches = positions[:1], positions[1:].T
    side = round(patches.shape[1] ** 0.5)
    square = F.interpolate(patches.reshape(1, -1, side, side), (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([own, square[0].flatten(1).T])
