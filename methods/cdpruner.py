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
        return prunekit.ops.greedy_determinant(kernel, quota, view.alive)


prunekit.compose(
    "cdpruner", scorer="relevance", fusion="single", schedule="input", selector="dpp", positions="renumber"
)
