"""CDPruner: tokens that differ from each other and matter for the question, as a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

EPSILON = 1e-6


@prunekit.register("scorer", "relevance")
@dataclass
class Relevance(prunekit.Scorer):
    """Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs (NeurIPS 2025,
    https://arxiv.org/abs/2506.10967, section 3): the relevance q of a token for the instruction.

    The negative mean cosine to the text, scaled to [0, 1] in each sample. The paper takes CLIP's embeddings of image
    and text; a loaded LVLM has no CLIP text tower, so these are what enters layer 0: visual tokens after the projector
    and the embeddings of the instruction's tokens.
    """

    reads_question = True

    def score(self, view) -> torch.Tensor:
        embeds, layout = view.inputs_embeds.float(), view.layout
        units = torch.nn.functional.normalize(embeds, dim=-1)
        text, exists = layout.text.to(units.device), layout.exists.to(units.device)
        mean_BD = (units * text[..., None]).sum(1) / text.sum(1, keepdim=True).clamp(min=1)
        relevance = -(prunekit.ops.gather_tokens(units, layout.visual_index) @ mean_BD[..., None])[..., 0]
        low = relevance.masked_fill(~exists, torch.inf).amin(1, keepdim=True)
        high = relevance.masked_fill(~exists, -torch.inf).amax(1, keepdim=True)
        return ((relevance - low + EPSILON) / (high - low).clamp(min=EPSILON)).to(view.hidden_states.device)


@prunekit.register("selector", "dpp")
@dataclass
class Dpp(prunekit.Selector):
    """Greedy MAP of a determinantal point process with the kernel diag(q) S diag(q) (CDPruner, section 3).

    S is the cosine of the tokens that enter the layer (at the input: what the projector makes), q their scores. Picks
    are those of Chen et al. (NeurIPS 2018): the token that raises the determinant most.
    """

    exact = True

    def select(self, view, scores, quota) -> torch.Tensor:
        cosine = prunekit.ops.cosine(view.visual(view.hidden_states))
        q = torch.where(view.alive, scores, 0).float().clamp(min=0)
        kernel = q[..., None] * cosine * q[:, None]
        return greedy_map(kernel, quota, view.alive)


def greedy_map(kernel: torch.Tensor, keep: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """The ``keep`` [B] tokens of ``alive`` [B, N] that greedily raise the determinant of ``kernel`` [B, N, N] most."""
    most, rows = int(keep.max()), torch.arange(len(alive), device=alive.device)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    factor = kernel.new_zeros(len(alive), most, alive.shape[1])  # of the Cholesky decomposition, row by row
    free = alive.clone()
    for step in range(most):
        pick = gain.masked_fill(~free, -torch.inf).argmax(1)
        past = factor[:, :step]
        row = kernel[rows, pick] - (past[rows, :, pick][:, None] @ past)[:, 0]
        row = row / gain[rows, pick].clamp(min=torch.finfo(gain.dtype).eps).sqrt()[:, None]
        factor[:, step] = row
        gain = gain - row.square()
        free[rows, pick] &= step >= keep  # a sample that has its number picks no more
    return alive & ~free


prunekit.compose(
    "cdpruner", scorer="relevance", fusion="single", schedule="input", selector="dpp", positions="renumber"
)
