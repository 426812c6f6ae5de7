"""Tower and projector learn to name what patches show, in the words on which the decoder has learned to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunekit.data.scene import Scene
from prunekit.data.words import KINDS
from tools.embedded.drawn import label_tokens, named, patch_words
from tools.embedded.pool import HELD, presence, scene_labels
from tools.embedded.progress import Log, load_checkpoint, optimisers, save_checkpoint
from tools.embedded.stage import Stage
from tools.embedded.tower import LETTER_WEIGHT, Heads, augment, pixels

RATE = 5e-3
TEMPERATURE = 0.06


def named_loss(
    visual: torch.Tensor, words: torch.Tensor, tokens: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of visual tokens [B, P, D] against the words of what they show, by cosine, and accuracies."""
    flat, loss, right = F.normalize(visual.flatten(0, 1), dim=-1), torch.zeros(()), {}
    for name, token in tokens.items():
        label = labels[name].flatten()
        shown = label > 0
        if bool(shown.any()):
            cosine, wanted = flat[shown] @ F.normalize(words[token], dim=-1).T, label[shown] - 1
            weight = torch.ones(len(token))
            if name == "thing":  # few patches show letters
                weight[len(KINDS) :] = LETTER_WEIGHT
            loss = loss + F.cross_entropy(cosine / TEMPERATURE, wanted, weight=weight)
            right[name] = (cosine.argmax(-1) == wanted).float().mean().item()
    return loss, right


def train_align(
    model: LlavaForConditionalGeneration,
    heads: Heads,
    tokenizer: PreTrainedTokenizerFast,
    pool: tuple[list[Scene], np.ndarray],
    folder: Path,
    steps: int,
    batch: int = 32,
) -> None:
    """Trains tower and projector in place to give the tokens that the decoder has learned on; the words stay.

    The tower keeps its own task, with its ``heads``, beside it. From the folder's checkpoint if there is one; the last
    HELD scenes are held back.
    """
    log, path, (scenes, images) = Log(folder, "align"), folder / "align.pt", pool
    modules = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector, "heads": heads}
    state, start = load_checkpoint(path), 0
    if state is not None:
        for name, module in modules.items():
            module.load_state_dict(state[name])
        start = state["step"]
    if start >= steps:
        return
    optimizers = optimisers(dict(zip(modules.values(), (0.5, 1.0, 0.5), strict=True)), RATE, decay=0.01)
    for optimizer, kept in zip(optimizers, state["optimizers"] if state else (), strict=False):
        optimizer.load_state_dict(kept)
    modules["tower"].set_attn_implementation("eager")  # see train_tower
    words, tokens = model.model.language_model.embed_tokens.weight.detach(), label_tokens(tokenizer)

    def loss_of(index: np.ndarray) -> tuple[torch.Tensor, dict[str, float]]:
        shown = [scenes[place] for place in index]
        labels = scene_labels(shown, model.config.vision_config.patch_size)
        visual, seeing, _ = see(model, heads, images[index], index, shown, labels)
        names = patch_words(labels)
        loss, right = named_loss(visual, words, tokens, names)
        weight = 1.0 + 4.0 * (names["thing"] > 0)[..., None]  # most patches are ground
        apart = ((visual - named(names, words, tokens)).square() * weight).mean() / words.var()
        return apart + 0.3 * loss + 0.5 * seeing, right

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([12, step])
        return loss_of(np.sort(rng.choice(len(scenes) - HELD, batch, replace=False)))[0]

    def ended(done: int) -> None:
        if done % 50 == 0 or done == steps:
            with torch.no_grad():
                found, right = loss_of(np.arange(len(scenes) - HELD, len(scenes)))
            log(done, loss=found.item(), right=right)
            states = {name: module.state_dict() for name, module in modules.items()}
            kept = [optimizer.state_dict() for optimizer in optimizers]
            save_checkpoint(path, **states, step=done, optimizers=kept)

    Stage("align", modules, optimizers, loss, ended, steps, start, warmup=20).run(folder)


def see(
    model: LlavaForConditionalGeneration,
    heads: Heads,
    images: np.ndarray,
    index: np.ndarray,
    scenes: list[Scene],
    labels: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Visual tokens [B, N, D] of images, the loss of the tower's own task and its accuracy on patches.

    The images are resized to as many patches as there are labels, fewer as the control ``downsample`` does it.
    """
    present = torch.from_numpy(np.stack([presence(scene) for scene in scenes]))
    side = round(labels["thing"].shape[1] ** 0.5) * model.config.vision_config.patch_size
    shown = augment(pixels(images, side), index)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model.vision_tower(shown, output_hidden_states=True, interpolate_pos_encoding=True)
        top, features = out.last_hidden_state[:, 1:], out.hidden_states[model.config.vision_feature_layer][:, 1:]
        loss, patch, _ = heads.read(top, out.pooler_output, labels["thing"], labels["hue"], present)
        visual = model.model.multi_modal_projector(features)
    return visual.float(), loss, patch
