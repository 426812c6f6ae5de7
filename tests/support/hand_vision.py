"""Vision encoders run by hand, one image at a time in float64, for the oracles of what happens before the decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from zoo.tiny import CLIP, IMAGE, TEXT, Batch, scaled_up, tiny_batch, tiny_model


def siglip_model(attn: str = "sdpa") -> Any:
    """A LLaVA on SigLIP: no CLS token, every patch is read, from the last block."""
    torch.manual_seed(1)
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = LlavaForConditionalGeneration._from_config(copy.deepcopy(config), attn_implementation=attn)
    return scaled_up(model)


def exact_model(kind: str, attn: str = "eager") -> Any:
    """A tiny LLaVA in float64: rounding then decides no tie."""
    return (siglip_model(attn) if kind == "siglip" else tiny_model("llava", attn)).double()


def exact_batch(batch: Batch) -> Batch:
    """The same batch with pixels in float64."""
    return tiny_batch({k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()})


@dataclass
class Image:
    """One image inside the encoder: tokens [S, C], how many patches each stands for, and which (-1: the CLS token)."""

    x: np.ndarray
    size: list[float]
    patches: list[list[int]]
    keys: list[np.ndarray] = field(default_factory=list)
    attention: list[np.ndarray] = field(default_factory=list)
    queries: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)


Step = Callable[[int, Image, np.ndarray, np.ndarray], None]


def run(model: Any, pixels: torch.Tensor, step: Step | None = None, weigh: bool = False) -> list[Image]:
    """The encoder on each of ``pixels``, up to the block that the projector reads.

    ``step(block, image, keys [H, S, d], attention [H, S, S])`` may change the tokens between attention and MLP.
    """
    tower = model.model.vision_tower
    has_cls = tower.config.model_type == "clip_vision_model"
    layers = tower.encoder.layers
    last = model.config.vision_feature_layer % (len(layers) + 1) - 1
    images = []
    with torch.no_grad():
        for one in pixels:
            start = tower.embeddings(one[None])
            start = tower.pre_layrnorm(start) if has_cls else start
            patches = [[i - int(has_cls)] for i in range(start.shape[1])]
            image = Image(start[0].numpy(), [1.0] * len(patches), patches)
            for number in range(len(layers) if step is None else last + 1):
                _block(layers[number], number, image, step, weigh)
                image.inputs.append(image.x)
            images.append(image)
    return images


def _block(layer: Any, number: int, image: Image, step: Step | None, weigh: bool) -> None:
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    normed = layer.layer_norm1(torch.from_numpy(image.x))
    q, k, v = (split(getattr(attention, f"{name}_proj")(normed).numpy(), heads) for name in "qkv")
    weights = np.empty((heads, len(image.x), len(image.x)))
    for h in range(heads):
        for i in range(len(image.x)):
            logits = [float(q[h, i] @ k[h, j]) * attention.scale for j in range(len(image.x))]
            if weigh:
                logits = [value + np.log(image.size[j]) for j, value in enumerate(logits)]
            weights[h, i] = softmax(logits)
    mixed = np.concatenate([weights[h] @ v[h] for h in range(heads)], axis=-1)
    image.x = image.x + attention.out_proj(torch.from_numpy(mixed)).numpy()
    image.queries.append(q)
    image.keys.append(k)
    image.values.append(v)
    image.attention.append(weights)
    if step is not None:
        step(number, image, k, weights)
    image.x = image.x + layer.mlp(layer.layer_norm2(torch.from_numpy(image.x))).numpy()


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[S, H · d] as [H, S, d]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def softmax(values: list[float]) -> np.ndarray:
    exponents = np.exp(np.array(values) - max(values))
    return exponents / exponents.sum()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def read(model: Any, image: Image) -> np.ndarray:
    """What the projector reads of an image that ran whole, [P, C]."""
    block = model.config.vision_feature_layer % (len(image.inputs) + 1) - 1
    return image.inputs[block][int(model.config.vision_feature_select_strategy == "default") :]


def looked(model: Any, image: Image) -> list[float]:
    """Head-mean attention of the CLS token to each patch in the block that is read; without one, what each receives."""
    weights = image.attention[model.config.vision_feature_layer % (len(image.inputs) + 1) - 1]
    size = weights.shape[-1]
    if model.config.vision_feature_select_strategy == "default":
        return [float(np.mean([w[0, j] for w in weights])) for j in range(1, size)]
    return [sum(float(w[i, j]) for w in weights for i in range(size)) / len(weights) / size for j in range(size)]


def project(model: Any, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.model.multi_modal_projector(torch.from_numpy(np.stack(list(features)))).numpy()


def entering(model: Any, batch: Batch, pruner: Any) -> tuple[list[np.ndarray], Any]:
    """The visual tokens that reach layer 0 of each sample, in the order of the sequence, [K, D] each; and the trace.

    For batches whose samples have one length.
    """
    caught: list[torch.Tensor] = []
    layer = model.get_decoder().layers[0]
    with torch.no_grad(), pruner(model) as trace:
        handle = layer.input_layernorm.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        model(**batch.inputs)
        handle.remove()
    found = []
    for b, row in enumerate(caught[0]):
        before, real = int(batch.visual[b].long().argmax()), int(trace.tokens_per_layer[0, b])
        start = len(row) - real + before  # a shorter sample is padded to the left
        found.append(row[start : start + int(trace.cuts[-1].kept[b].sum())].double().numpy())
    return found, trace


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]


def thin_out(features: np.ndarray, scores: list[float], keep: int, important: float, step: int) -> list[int]:
    """VisPruner's two halves."""
    order = best(scores, len(scores))
    chosen, rest = order[: int(keep * important)], order[int(keep * important) :]
    want = keep - len(chosen)
    while want and len(rest) > want:
        a, b = rest[::2], rest[1::2]
        match = {i: max(cosine(features[i], features[j]) for j in b) for i in a} if b else dict.fromkeys(a, -1.0)
        ranked = sorted(a, key=lambda i: -match[i])
        rest = ranked[min(step, len(rest) - want, len(a)) :] + b
    return chosen + (rest if want else [])


def farthest(points: np.ndarray, keep: int) -> list[int]:
    """DivPrune's greedy max-min."""
    gap = [[1 - cosine(a, b) for b in points] for a in points]
    nearest = [min(g for j, g in enumerate(row) if j != i) for i, row in enumerate(gap)]
    chosen = [max(range(len(points)), key=lambda i: nearest[i])]
    while len(chosen) < keep:
        free = [i for i in range(len(points)) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(gap[i][j] for j in chosen)))
    return chosen


def determinants(kernel: np.ndarray, keep: int) -> list[int]:
    """Greedy MAP by the determinants themselves."""
    chosen: list[int] = []
    for _ in range(keep):
        free = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(max(free, key=lambda i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])])))
    return chosen
