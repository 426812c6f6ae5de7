"""Tiny random models from configs, batches for them, and the slow reference that pruning is held against."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE, PAD, VOCAB = 90, 0, 96
FAMILIES = ("llava", "llava_next", "qwen2_vl")
PADDINGS = ("none", "left", "right")
DEPTH = 6

_TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=DEPTH,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=None,
)
_CLIP = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
)


@functools.cache
def _config(family: str):
    if family == "qwen2_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        return Qwen2VLConfig(
            text_config={**_TEXT, "rope_parameters": rope},
            vision_config=dict(
                depth=2, embed_dim=16, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2,
                temporal_patch_size=2, mlp_ratio=2, in_channels=3,
            ),
            image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
        )  # fmt: skip
    kind, extra = (
        (LlavaConfig, {})
        if family == "llava"
        else (LlavaNextConfig, {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]})
    )
    return kind(
        text_config=LlamaConfig(**_TEXT), vision_config=CLIPVisionConfig(**_CLIP), image_token_id=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy="default", **extra,
    )  # fmt: skip


_MODELS = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}


def tiny_model(family: str, attn: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """A random model whose weights are scaled up until hiding tokens visibly moves its logits."""
    torch.manual_seed(seed)
    model = _MODELS[family]._from_config(copy.deepcopy(_config(family)), attn_implementation=attn)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0 if "language_model" in name or "lm_head" in name else 2.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.float().eval()


@dataclass
class Batch:
    """Model inputs; ``inputs`` go to forward and generate as they are."""

    inputs: dict[str, torch.Tensor]

    @property
    def ids(self) -> torch.Tensor:
        return self.inputs["input_ids"]

    @property
    def mask(self) -> torch.Tensor:
        return self.inputs["attention_mask"].bool()

    @property
    def visual(self) -> torch.Tensor:
        return (self.ids == IMAGE) & self.mask


def make_batch(family: str, padding: str = "none", seed: int = 0, batch: int = 3) -> Batch:
    """``batch`` samples of text, one image, text; texts of different lengths if the batch is to be padded."""
    g = torch.Generator().manual_seed(seed)
    extra: dict[str, torch.Tensor] = {}
    if family == "qwen2_vl":
        grids = torch.tensor([[1, 6, 8]] * batch if padding == "none" else [[1, 6, 8], [1, 4, 4], [1, 8, 4]][:batch])
        counts = (grids.prod(1) // 4).tolist()
        extra["pixel_values"] = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4, generator=g)
        extra["image_grid_thw"] = grids
    elif family == "llava":
        counts = [16] * batch
        extra["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=g)
    else:
        sizes = torch.tensor([[32, 32]] * batch if padding == "none" else [[32, 32], [16, 32], [32, 16]][:batch])
        extra["image_sizes"] = sizes
        extra["pixel_values"] = torch.randn(batch, 5, 3, 16, 16, generator=g)
        model = tiny_model(family)
        with torch.no_grad():
            features = model.get_image_features(extra["pixel_values"], sizes)
        features = getattr(features, "pooler_output", features)
        counts = [len(f) for f in features]
    rows = []
    for i in range(batch):
        before, after = (3, 7) if padding == "none" else (2 + i, 4 + 2 * i)
        text = torch.randint(2, 80, (before + after,), generator=g).tolist()
        rows.append([*text[:before], *([IMAGE] * counts[i]), *text[before:]])
    size = max(map(len, rows))
    ids, mask = torch.full((batch, size), PAD), torch.zeros(batch, size, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if padding == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    if family == "qwen2_vl":
        extra["mm_token_type_ids"] = (ids == IMAGE).int()
    return Batch({"input_ids": ids, "attention_mask": mask, **extra})


def hidden_keys(batch: Batch, cuts) -> dict[int, torch.Tensor]:
    """From a trace's cuts: for each cut layer, which dense positions [B, S] are hidden from there on."""
    hidden = {}
    for cut in cuts:
        gone = torch.zeros_like(batch.mask)
        for b in range(gone.shape[0]):
            places = batch.visual[b].nonzero()[:, 0]
            gone[b, places[~cut.kept[b, : len(places)]]] = True
        hidden[cut.layer] = gone
    return hidden


def dense_with_hidden_keys(model, batch: Batch, hidden: dict[int, torch.Tensor], new: int = 0):
    """The reference: the dense model, eager and without cache, whose layers from a cut on see masks that close the
    columns of the tokens that went. With ``new`` it decodes greedily by running the whole sequence again for each
    token. Returns (logits of the prompt [B, S, V], greedy tokens [B, new], logits of each step [B, new, V])."""
    device_inputs = dict(batch.inputs)
    size = batch.ids.shape[1]
    layers = model.get_decoder().layers
    ids, mask = batch.ids, batch.inputs["attention_mask"]
    prompt, tokens, steps = None, [], []
    for _ in range(max(1, new + 1)):
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & mask.bool()[:, None, :]
        handles = []
        for index, layer in enumerate(layers):
            seen = allowed.clone()
            for cut, gone in hidden.items():
                if index >= cut:
                    seen[:, :, :size] &= ~gone[:, None, :]
            additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

            def replace(module, args, kwargs, additive=additive):
                return args, {**kwargs, "attention_mask": additive}

            handles.append(layer.register_forward_pre_hook(replace, with_kwargs=True))
        device_inputs |= {"input_ids": ids, "attention_mask": mask}
        device_inputs["position_ids"] = positions(model, batch, ids.shape[1], bool(new))
        try:
            with torch.no_grad():
                logits = model(**device_inputs, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        if prompt is None:
            prompt = logits
        last = logits[:, -1]
        steps.append(last)
        tokens.append(last.argmax(-1))
        ids = torch.cat([ids, tokens[-1][:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return prompt, torch.stack(tokens[:new], 1) if new else None, torch.stack(steps[: max(new, 1)], 1)


def positions(model, batch: Batch, length: int, generating: bool) -> torch.Tensor:
    """Position ids of the prompt and of ``length - S`` tokens after it, as the model numbers them.

    A plain forward counts places; ``generate`` counts real tokens and gives padding 0, and a new token follows the
    last position, padding or not. With M-RoPE positions are triples.
    """
    mask, size = batch.inputs["attention_mask"], batch.ids.shape[1]
    plain = torch.arange(size).expand_as(mask)
    if generating:
        plain = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    if "image_grid_thw" in batch.inputs:
        types, grid = batch.inputs["mm_token_type_ids"], batch.inputs["image_grid_thw"]
        plain, _ = model.model.get_rope_index(batch.ids, types, grid, attention_mask=mask)
    return torch.cat([plain, plain[..., -1:] + torch.arange(1, length - size + 1)], -1)
