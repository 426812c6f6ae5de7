"""MMTok: tokens that cover both the question and the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("selector", "mmtok")
@dataclass
class MMTok(prunekit.Selector):
    """MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs (ICLR 2026,
    https://arxiv.org/abs/2508.18264, section 3), at the input.

    The question's tokens are covered by the softmax, over visual tokens, of their cosine to what the projector makes;
    the image's patches by that of the encoder's features to each other. Both are means over their rows. Picks are those
    of greedy maximum coverage; scores are ignored.

    Args:
        image: α, the weight of the image's coverage; with 0 the question alone counts.
        text_temperature, image_temperature: of the two softmaxes.
    """

    image: float = 0.5
    text_temperature: float = 0.02
    image_temperature: float = 0.2

    exact = ignores_scores = uses_vision = reads_question = True

    def __post_init__(self) -> None:
        if self.image < 0:
            raise prunekit.PrunekitError(f"selector.image must be at least 0, not {self.image}")
        for name in ("text_temperature", "image_temperature"):
            if getattr(self, name) <= 0:
                raise prunekit.PrunekitError(f"selector.{name} must be above 0, not {getattr(self, name)}")

    def select(self, view, scores, quota) -> torch.Tensor:
        if view.site != "input":
            raise prunekit.PrunekitError("selector 'mmtok' compares embeddings, and works at the input alone")
        alive = view.alive
        embeds, text = view.inputs_embeds, view.layout.text.to(alive.device)
        index, words = prunekit.ops.ragged_index(text, max(view.layout.text_counts))
        tokens = view.visual(view.hidden_states)
        question = prunekit.ops.cosine(prunekit.ops.gather_tokens(embeds, index), tokens)
        patches = alive & view.vision.exists.to(alive.device)  # newlines between tiles have no features
        features = prunekit.ops.cosine(view.vision.features.to(alive.device))
        rows = [
            shares(question / self.text_temperature, words, alive),
            self.image * shares(features / self.image_temperature, patches, patches),
        ]
        return prunekit.ops.cover(torch.cat(rows, dim=1), quota, alive)


def shares(logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The softmax of logits [B, R, N] over ``columns`` [B, N], over the number of ``rows`` [B, R]; 0 in other rows."""
    weights = logits.masked_fill(~columns[:, None], torch.finfo(logits.dtype).min).softmax(-1)
    return weights * (rows[..., None] / rows.sum(1).clamp(min=1)[:, None, None]) * columns[:, None]


prunekit.compose("mmtok", scorer="random", fusion="single", schedule="input", selector="mmtok", positions="renumber")
