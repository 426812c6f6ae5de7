"""Fusions: how the evidence of several layers becomes one score a token."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from prunekit.components.base import Fusion, LayerWork, RowScorer, Scorer
from prunekit.errors import PrunekitError, check_interval
from prunekit.registry import register
from prunekit.views.layer import LayerView

SHIPPED = {path.stem: path for path in (Path(__file__).parent.parent / "assets" / "fusion").glob("*.safetensors")}
"""Fusion weights that ship with the package, by the name of their model."""


@register("fusion", "single")
@dataclass
class SingleFusion(Fusion):
    """The last layer before the cut alone (FastV; the founding document's single-layer ablation)."""

    def layers(self, cut: int, previous: int) -> list[int]:
        return [cut - 1] if cut else []

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        return evidence[-1]


@register("fusion", "ahead")
@dataclass
class AheadFusion(Fusion):
    """The layer that the tokens are about to enter, by its own norm and projections, before they go (PyramidDrop, CVPR
    2025). A scorer that reads hidden states alone sees those at the cut, without any run ahead (DART)."""

    uses_next_layer = True

    def layers(self, cut: int, previous: int) -> list[int]:
        return [cut]

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        return evidence[-1]


class WindowedFusion(Fusion):
    """Layers below the cut: all of them, the last ``window``, or the named ``from_layers``."""

    window: int | None
    from_layers: list[int] | None

    def __post_init__(self) -> None:
        if self.window is not None and self.from_layers is not None:
            raise PrunekitError("fusion.window and fusion.from_layers exclude each other")
        if self.window is not None and self.window < 1:
            raise PrunekitError(f"fusion.window must be at least 1, not {self.window}")
        if self.from_layers is not None and (not self.from_layers or min(self.from_layers) < 0):
            raise PrunekitError(f"fusion.from_layers must name layers from 0 on, not {self.from_layers}")

    def layers(self, cut: int, previous: int) -> list[int]:
        if self.from_layers is not None:
            chosen = sorted({layer for layer in self.from_layers if layer < cut})
            if cut and not chosen:
                raise PrunekitError(f"fusion.from_layers={list(self.from_layers)} has no layer before the cut at {cut}")
            return chosen
        return list(range(max(0, cut - self.window) if self.window else 0, cut))


@register("fusion", "multi")
@dataclass
class MultiFusion(WindowedFusion):
    """Uniform mean over the layers below the cut (IVTP as the founding document describes it).

    Args:
        window: only the last so many layers below the cut; all of them by default (the paper's choice).
        from_layers: exactly these layers (those below the cut).
    """

    window: int | None = None
    from_layers: list[int] | None = None

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        return evidence.mean(0)


@register("fusion", "learned")
@dataclass
class LearnedFusion(Fusion):
    """Weighted sum over the layers below the cut, s = Σ_l w_l s_l, with learned weights w_l (IVTP, founding document).

    Args:
        weights: safetensors file with a tensor "weights" [depth], one number a decoder layer, or the name of an
            embedded model that ships with its own ("mini"). Without it the weights are uniform, with one warning.
    """

    weights: str | None = None

    def __post_init__(self) -> None:
        self._trained: torch.nn.Parameter | None = None
        if self.weights is not None:
            load_weights(self.weights)

    def parameter(self, depth: int) -> torch.nn.Parameter:
        """The weights [depth] as what training changes, from ``weights`` or uniform; from now on ``fuse`` uses them."""
        if self._trained is None:
            start = torch.full((depth,), 1 / depth) if self.weights is None else load_weights(self.weights).clone()
            self._trained = torch.nn.Parameter(start)
            self.check(depth)
        return self._trained

    def save_weights(self, path: Path) -> bool:
        from safetensors.torch import save_file

        w = load_weights(self.weights) if self.weights in SHIPPED else None
        if (w := w if self._trained is None else self._trained) is None:
            return False
        save_file({"weights": w.detach().float().cpu().clone()}, path)
        return True

    def check(self, depth: int) -> None:
        if self._trained is not None and len(self._trained) == depth:
            return
        if self.weights is None:
            warnings.warn("fusion 'learned' has no weights file (fusion.weights=PATH): uniform weights", stacklevel=2)
        elif len(w := load_weights(self.weights)) != depth:
            raise PrunekitError(f"fusion.weights: '{self.weights}' is for {len(w)} layers, the decoder has {depth}")

    def layers(self, cut: int, previous: int) -> list[int]:
        return list(range(cut))

    def fuse(self, evidence: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        if self._trained is not None:
            w_L = self._trained[list(layers)].to(evidence)
        elif self.weights is None:
            return evidence.mean(0)
        else:
            w_L = load_weights(self.weights)[list(layers)].to(evidence)
        return torch.einsum("l,lbn->bn", w_L, evidence)


def load_weights(path: str) -> torch.Tensor:
    """The tensor "weights" [depth] of a safetensors file, float32; a name of ``SHIPPED`` stands for its file.

    Raises:
        PrunekitError: for a file that is not there or holds no such tensor.
    """
    path = str(SHIPPED.get(path, path))
    if not Path(path).is_file():
        raise PrunekitError(f"fusion.weights: no file '{path}'")
    stat = Path(path).stat()
    return _read_weights(path, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=8)
def _read_weights(path: str, version: tuple[int, int]) -> torch.Tensor:
    """Read once for each ``version`` of the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise PrunekitError(f"fusion.weights: '{path}' is not a safetensors file ({error})") from None
    if "weights" not in tensors or tensors["weights"].ndim != 1:
        raise PrunekitError(f"fusion.weights: '{path}' has no one-dimensional tensor 'weights'")
    w = tensors["weights"].float()
    if not torch.isfinite(w).all() or not w.any():
        raise PrunekitError(f"fusion.weights: '{path}' holds weights that are not finite, or all zero")
    return w


@register("fusion", "rollout")
@dataclass
class RolloutFusion(Fusion):
    """Attention rollout over the layers since the last cut (Abnar and Zuidema, 2020; IVTP's own mechanism).

    R = Â_last ··· Â_first (last layer leftmost) with Â = residual·I + (1 − residual)·headmean(A); the scorer reads its
    rows of R. The product is taken row-wise from the left, so no S×S matrix is ever made: R's rows of the scorer's
    queries are multiplied by one layer's attention at a time.

    Args:
        residual: weight of the identity (½ in the paper); rows keep the sum 1, so no further normalisation is needed.
        window: only the last so many layers; by default all since the last cut.
    """

    residual: float = 0.5
    window: int | None = None

    def __post_init__(self) -> None:
        check_interval("fusion.residual", self.residual, "[0, 1)")
        if self.window is not None and self.window < 1:
            raise PrunekitError(f"fusion.window must be at least 1, not {self.window}")

    def layers(self, cut: int, previous: int) -> list[int]:
        return list(range(max(previous, cut - self.window) if self.window else previous, cut))

    def fuse_views(self, views: Sequence[LayerView], scorer: Scorer) -> torch.Tensor:
        assert isinstance(scorer, RowScorer)  # Pruner refuses any other
        last = views[-1]
        queries = scorer.chosen_queries(last)
        rows_BQS = self.residual * last.one_hot(queries) + (1 - self.residual) * last.mean_attention(queries)
        for view in reversed(views[:-1]):
            product_BQS = view.propagate(rows_BQS)  # earlier layers may live on another device
            rows_BQS = self.residual * rows_BQS.to(product_BQS.device) + (1 - self.residual) * product_BQS
        return scorer.score_rows(rows_BQS[:, None].to(last.hidden_states.device), last)

    def macs(self, works: Sequence[LayerWork], scorer: Scorer) -> float:
        assert isinstance(scorer, RowScorer)
        *earlier, last = works
        queries = last.queries(scorer.counted_queries)
        passed = sum(work.row_macs(work.tokens) + queries * work.tokens**2 for work in earlier)
        return last.row_macs(queries) + passed
