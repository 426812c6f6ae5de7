"""FastV: the attention that a visual token receives in the layer before one early cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

QUERIES = {"code": "last", "paper": "all"}


@prunekit.register("scorer", "fastv")
@dataclass
class FastV(prunekit.RowScorer):
    """An Image is Worth 1/2 Tokens After Layer 2 (ECCV 2024, https://arxiv.org/abs/2403.06764, section 4).

    The score of a token is the head-mean attention that it receives in the layer before the cut. Before a cut at
    layer 0 there is no such layer: there the authors' code drops tokens at random, and so does this.

    Args:
        variant: "code" (default) reads the row of the last token, as the authors' code does; "paper" averages what all
            other tokens give, as the paper says. Averages are over the tokens that can see the one scored.
        query: "last", "text" (the instruction) or "all" instead of the variant's own.
        seed: of the draw for K = 0; 0 if not given (the command line's ``seed``).
    """

    variant: str = "code"
    query: str | None = None
    seed: int | None = None

    works_without_attention = True

    def __post_init__(self) -> None:
        prunekit.check_choice("variant", self.variant, QUERIES)
        prunekit.check_choice("query", self.query or "last", ("last", "text", "all"))

    @property
    def query_set(self) -> str:
        return self.query or QUERIES[self.variant]

    def score(self, view) -> torch.Tensor:
        if view.inputs is None:
            return prunekit.create("scorer", "random", seed=self.seed).score(view)
        return super().score(view)

    def score_rows(self, rows: torch.Tensor, view) -> torch.Tensor:
        others_BQS = view.visible(self.query_set)
        if self.query_set == "all":
            others_BQS = others_BQS & ~view.one_hot(self.query_set).bool().to(others_BQS.device)
        received_BS = (rows.mean(1) * others_BQS).sum(1)
        return view.visual(received_BS / others_BQS.sum(1).clamp(min=1))


prunekit.compose("fastv", scorer="fastv", fusion="single", schedule={"name": "one_shot", "layer": 2}, positions="keep")
