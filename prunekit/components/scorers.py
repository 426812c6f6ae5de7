"""Scorers: how much each visual token matters, seen from one decoder layer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from prunekit.components.base import LayerWork, RowScorer, Scorer
from prunekit.errors import check_choice
from prunekit.registry import register
from prunekit.tensors.merging import cosine
from prunekit.views.layer import LayerView

HEADS = ("mean", "max")


class ReceivedAttention(RowScorer):
    """Attention that a visual token receives from a set of queries, averaged over those that can see it."""

    heads: str

    def __post_init__(self) -> None:
        check_choice("heads", self.heads, HEADS)

    def score(self, view: LayerView) -> torch.Tensor:
        received_BS: torch.Tensor | float = 0.0
        seeing_BS: torch.Tensor | float = 0.0
        for rows_BHQS, visible_BQS in view.attention_blocks(self.chosen_queries(view)):
            received_BS = received_BS + self._received(rows_BHQS, visible_BQS)
            seeing_BS = seeing_BS + visible_BQS.sum(1)
        return self._mean(received_BS, seeing_BS, view)

    def score_rows(self, rows: torch.Tensor, view: LayerView) -> torch.Tensor:
        visible_BQS = view.visible(self.chosen_queries(view))
        return self._mean(self._received(rows, visible_BQS), visible_BQS.sum(1), view)

    def _received(self, rows_BHQS: torch.Tensor, visible_BQS: torch.Tensor) -> torch.Tensor:
        rows_BQS = rows_BHQS.mean(1) if self.heads == "mean" else rows_BHQS.amax(1)
        return (rows_BQS * visible_BQS).sum(1)

    @staticmethod
    def _mean(received_BS: Any, seeing_BS: Any, view: LayerView) -> torch.Tensor:
        return view.visual(received_BS / seeing_BS.clamp(min=1))


@register("scorer", "instruction")
@dataclass
class InstructionScorer(ReceivedAttention):
    """Attention from the instruction's text tokens (IVTP, ECCV 2024, as the founding document describes it).

    score_i = mean over heads h and text tokens j of A(l,h)[j -> i].

    Args:
        rows: "text" averages all instruction tokens (the paper's choice), "last" reads the last token alone
            (FastV's code), "all" every token that can see the visual token (FastV's paper).
        heads: "mean" (the paper's choice) or "max" over heads.
    """

    rows: str = "text"
    heads: str = "mean"

    sites = ("decoder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ("text", "last", "all"))

    @property
    def query_set(self) -> str:
        return self.rows


@register("scorer", "visual")
@dataclass
class VisualScorer(ReceivedAttention):
    """Attention received from visual tokens in the decoder, blind to the question.

    Averaged over the queries that can see the token, so that under a causal mask early tokens, which more queries
    see, gain nothing by their place alone.
    """

    heads: str = "mean"

    sites = ("vision", "decoder")

    @property
    def query_set(self) -> str:
        return "visual"


@register("scorer", "tome")
@dataclass
class ToMeScorer(Scorer):
    """Minus the largest cosine of a token's head-mean key to another visual token's: the most redundant go first.

    The similarity of ToMe (ICLR 2023, section 3), used as a rank. In the decoder the keys are those after the rotary
    embedding, as the layer's attention sees them.
    """

    uses_attention = True
    sites = ("vision", "decoder")

    def score(self, view: LayerView) -> torch.Tensor:
        cosine_BNN = cosine(view.visual(view.keys.mean(1)))
        itself_NN = torch.eye(cosine_BNN.shape[-1], dtype=torch.bool, device=cosine_BNN.device)
        # A single visual token has no other: its similarity is that of nothing, -1, rather than an infinity.
        others_BNN = cosine_BNN.masked_fill(itself_NN | ~view.alive[:, None, :], -1.0)
        return -others_BNN.amax(-1)

    def macs(self, work: LayerWork) -> float:
        return float(work.visual**2 * work.head_dim)


@register("scorer", "random")
@dataclass
class RandomScorer(Scorer):
    """Uniform noise, the control. Seeded by the prompt's own tokens (their embeddings, where the model was given no
    ids), so a sample draws the same numbers in whatever batch it stands. Two images under the same words draw the same
    numbers too: average over seeds where that matters.

    Args:
        seed: another draw for the same sample; 0 if not given (the command line's ``seed``).
    """

    seed: int | None = None

    draws = True

    def score(self, view: LayerView) -> torch.Tensor:
        layout = view.layout
        scores_BN = torch.zeros(layout.exists.shape)
        tokens = layout.input_ids if layout.input_ids is not None else view.inputs_embeds.detach().float()
        for row, (sample, prompt, count) in enumerate(
            zip(tokens.cpu(), layout.prompt.cpu(), layout.counts, strict=True)
        ):
            content = f"{self.seed or 0}:{sample[prompt].tolist()}".encode()
            digest = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
            scores_BN[row, :count] = torch.rand(count, generator=torch.Generator().manual_seed(digest))
        return scores_BN.to(view.hidden_states.device)
