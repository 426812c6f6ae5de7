"""Scores by plain loops over full attention matrices, as the formulas read; slow and obviously right."""

from __future__ import annotations

import numpy as np
import torch

from tiny import Batch


def eager_attentions(model, batch: Batch, hidden: dict[int, torch.Tensor]) -> list[np.ndarray]:
    """Attention [B, H, S, S] of each layer of the eager dense model, whose layers from a cut on have masks that close
    the columns of the tokens ``hidden`` there."""
    size = batch.ids.shape[1]
    handles = []
    causal = torch.ones(size, size, dtype=torch.bool).tril() & batch.mask[:, None, :]
    for index, layer in enumerate(model.get_decoder().layers):
        seen = causal.clone()
        for cut, gone in hidden.items():
            if index >= cut:
                seen &= ~gone[:, None, :]
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

        def replace(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.register_forward_pre_hook(replace, with_kwargs=True))
    try:
        with torch.no_grad():
            found = model(**batch.inputs, use_cache=False, output_attentions=True).attentions
    finally:
        for handle in handles:
            handle.remove()
    return [a.double().numpy() for a in found]


def query_rows(batch: Batch, b: int, which: str, alive: list[int]) -> list[int]:
    """Dense positions of a query set of sample ``b``; ``alive`` are its visual tokens still standing."""
    real = [s for s in range(batch.ids.shape[1]) if batch.mask[b, s]]
    visual = [s for s in real if batch.visual[b, s]]
    if which == "visual":
        return alive
    if which == "last":
        return [real[-1]]
    text = [s for s in real if s not in visual and s > visual[0]]
    return text if which == "text" else [s for s in real if s not in visual or s in alive]


def received(matrix: np.ndarray, rows: list[int], column: int, heads: str = "mean") -> float:
    """Mean over the rows that can see the column (causal) of the head-mean or head-max attention [H, S, S]."""
    values = []
    for row in rows:
        if row >= column:
            per_head = [matrix[h, row, column] for h in range(matrix.shape[0])]
            values.append(max(per_head) if heads == "max" else sum(per_head) / len(per_head))
    return sum(values) / len(values) if values else 0.0


def rollout(matrices: list[np.ndarray], residual: float = 0.5) -> np.ndarray:
    """[1, S, S]: Â_last ··· Â_first with Â = residual·I + (1 − residual)·headmean(A)."""
    size = matrices[0].shape[-1]
    product = np.eye(size)
    for matrix in matrices:
        product = (residual * np.eye(size) + (1 - residual) * matrix.mean(0)) @ product
    return product[None]


def scores(
    attentions: list[np.ndarray],
    batch: Batch,
    *,
    queries: str,
    layers: list[int],
    fusion: str = "multi",
    weights: list[float] | None = None,
    kept: torch.Tensor | None = None,
    heads: str = "mean",
) -> list[dict[int, float]]:
    """For each sample: dense position of a standing visual token -> score, from the evidence of ``layers``.

    ``kept`` [B, N] is what an earlier cut left (None: everything).
    """
    found = []
    for b in range(batch.ids.shape[0]):
        places = [s for s in range(batch.ids.shape[1]) if batch.visual[b, s]]
        alive = [p for n, p in enumerate(places) if kept is None or kept[b, n]]
        if fusion == "rollout":
            evidence = [rollout([attentions[layer][b] for layer in layers])]
            shares = [1.0]
        else:
            evidence = [attentions[layer][b] for layer in layers]
            shares = weights or [1 / len(layers)] * len(layers)
        rows = query_rows(batch, b, queries, alive)
        found.append(
            {p: sum(w * received(m, rows, p, heads) for w, m in zip(shares, evidence, strict=True)) for p in alive}
        )
    return found


def compare(cut_scores: torch.Tensor, expected: list[dict[int, float]], batch: Batch) -> float:
    """Largest difference between a cut's scores [B, N] and the expected ones; NaN exactly where none is expected."""
    worst = 0.0
    for b, values in enumerate(expected):
        places = [s for s in range(batch.ids.shape[1]) if batch.visual[b, s]]
        for n in range(cut_scores.shape[1]):
            got = float(cut_scores[b, n])
            if n >= len(places) or places[n] not in values:
                assert np.isnan(got)
            else:
                worst = max(worst, abs(got - values[places[n]]))
    return worst
