"""Stage 1: the vision tower, on what each patch shows and, for the CLS token, on what the image holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from prunekit.data.scene import Scene
from prunekit.data.words import KINDS
from tools.embedded.pool import HELD, HUES, THINGS, presence, scene_labels
from tools.embedded.progress import Log, load_checkpoint, optimiser, save_checkpoint
from tools.embedded.stage import Stage

GROUND_WEIGHT = 0.1  # most patches are ground
LETTER_WEIGHT = 5.0  # few show letters


class Heads(nn.Module):
    """Linear read-outs used in this stage only: of patches at the tower's top, of the CLS token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.thing = nn.Linear(width, len(THINGS) + 1)
        self.hue = nn.Linear(width, len(HUES) + 1)
        self.present = nn.Linear(width, len(THINGS))

    def read(
        self,
        patches: torch.Tensor,
        cls: torch.Tensor,
        things: torch.Tensor,
        hues: torch.Tensor,
        present: torch.Tensor,
    ) -> tuple[torch.Tensor, float, float]:
        """Loss, accuracy of the patches' things, and the share of the present things that CLS finds."""
        patches = self.norm(patches)
        what, color, there = self.thing(patches), self.hue(patches), self.present(cls)
        loss = patch_loss(what, things) + 0.5 * patch_loss(color, hues)
        loss = loss + 5 * F.binary_cross_entropy_with_logits(there.float(), present)
        found = ((there > 0) & (present > 0)).sum().item() / present.sum().item()
        return loss, patch_accuracy(what, things), found


def pixels(images: np.ndarray, side: int | None = None) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, side, side] in [-1, 1], resized as the image processor does it."""
    shown = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if side is None or shown.shape[-1] == side:
        return shown
    return F.interpolate(shown, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [..., C] against [...], ground patches weighted down."""
    weight = torch.ones(logits.shape[-1])
    weight[0] = GROUND_WEIGHT
    if logits.shape[-1] > len(THINGS):
        weight[len(KINDS) + 1 :] = LETTER_WEIGHT
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), weight=weight)


def patch_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the patches that are not ground which are classified right."""
    shown = labels > 0
    return (logits.argmax(-1) == labels)[shown].float().mean().item()


def train_tower(
    tower: CLIPVisionModel, images: np.ndarray, scenes: list[Scene], folder: Path, steps: int, batch: int = 48
) -> None:
    """Trains the tower in place, from the folder's checkpoint if there is one; the last HELD scenes are held back."""
    log, path = Log(folder, "tower"), folder / "tower.pt"
    torch.manual_seed(1)
    heads = Heads(tower.config.hidden_size)
    state, start = load_checkpoint(path), 0
    if state is not None:
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        start = state["step"]
    if start >= steps:
        return
    optimizer = optimiser({tower: 1.0, heads: 1.0}, 1.5e-3)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    usual = tower.config._attn_implementation
    tower.set_attn_implementation("eager")  # twice as fast as SDPA for bf16 on a CPU, backward included
    labels = scene_labels(scenes, tower.config.patch_size)
    present = torch.from_numpy(np.stack([presence(scene) for scene in scenes]))
    held = len(scenes) - HELD

    def loss_of(index: np.ndarray) -> tuple[torch.Tensor, float, float]:
        with torch.autocast("cpu", torch.bfloat16):
            out = tower(pixel_values=augment(pixels(images[index]), index))
            things, hues = labels["thing"][index], labels["hue"][index]
            return heads.read(out.last_hidden_state[:, 1:], out.pooler_output, things, hues, present[index])

    shown: dict[str, float] = {}

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([11, step])
        found, accuracy, _ = loss_of(np.sort(rng.choice(held, batch, replace=False)))
        shown.update(loss=found.item(), train=accuracy)
        return found

    def ended(done: int) -> None:
        if done % 50 == 0:
            with torch.no_grad():
                _, held_accuracy, held_found = loss_of(np.arange(held, held + HELD))
            log(done, **shown, patch=held_accuracy, cls_recall=held_found)
        if done % 50 == 0 or done == steps:
            state = {"tower": tower.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(path, step=done, **state)

    modules: dict[str, nn.Module] = {"tower": tower, "heads": heads}
    clipped = list(tower.parameters())
    Stage("tower", modules, [optimizer], loss, ended, steps, start, clipped=clipped).run(folder)
    tower.set_attn_implementation(usual)


def augment(images: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Brightness, contrast and noise at random, seeded by the images drawn."""
    generator = torch.Generator().manual_seed(int(index.sum()) + int(index[0]))
    gain = 1 + 0.3 * (torch.rand(len(images), 3, 1, 1, generator=generator) - 0.5)
    shift = 0.3 * (torch.rand(len(images), 3, 1, 1, generator=generator) - 0.5)
    return images * gain + shift
