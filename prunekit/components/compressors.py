"""Compressors: reducers that replace all visual tokens by fewer, made anew, where the projector's output arrives.

They are meant for a cut before layer 0, with a selector that says where the new tokens stand (``stride``: evenly): the
m-th new token of a sample is written to its m-th kept slot.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunekit.components.base import Reduced, Reducer
from prunekit.components.resamplers import PerceiverLayer, QFormerLayer, Resampler
from prunekit.errors import PrunekitError
from prunekit.registry import register
from prunekit.tensors.indexing import gather_tokens


class Compressor(Reducer):
    """A reducer whose kept slots hold what it makes of all standing tokens together."""

    def compress(self, tokens: torch.Tensor, alive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """New tokens [B, at least the largest count, D] from ``tokens`` [B, N, D], those of ``alive`` [B, N]; of sample
        b the first ``counts[b]`` are used."""
        raise TypeError(f"{type(self).__name__} defines no compress(tokens, alive, counts)")

    def reduce(  # type: ignore[override]
        self, *, tokens: torch.Tensor, sizes: torch.Tensor, kept: torch.Tensor, alive: torch.Tensor, **rest: object
    ) -> Reduced:
        counts_B = kept.sum(1)
        compressed_BMD = self.compress(tokens.float(), alive, counts_B).to(tokens.dtype)
        number_BN = (kept.cumsum(1) - 1).clamp(min=0, max=compressed_BMD.shape[1] - 1)
        placed_BND = gather_tokens(compressed_BMD, number_BN)
        share_B = (sizes * alive).sum(1) / counts_B.clamp(min=1)
        sizes_BN = torch.where(kept, share_B[:, None], sizes)
        return Reduced(torch.where(kept[..., None], placed_BND, tokens), sizes_BN)


@register("reducer", "average_pool")
@dataclass
class AveragePool(Compressor):
    """The standing tokens in order, in as many runs of nearly equal length as tokens stay, each run's mean.

    No training. Token n of N goes to run floor(n · M / N). For windows of the grid see the control ``pooling``.
    """

    def compress(self, tokens: torch.Tensor, alive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        number_BN, total_B = alive.cumsum(1) - 1, alive.sum(1).clamp(min=1)
        run_BN = (number_BN * counts[:, None]).div(total_B[:, None], rounding_mode="floor").clamp(min=0)
        member_BMN = torch.nn.functional.one_hot(run_BN, tokens.shape[1]).transpose(1, 2) * alive[:, None]
        return member_BMN.to(tokens.dtype) @ tokens / member_BMN.sum(-1, keepdim=True).clamp(min=1)


@dataclass
class TrainedCompressor(Compressor):
    """Learned queries that read the visual tokens. The module belongs to the component, and is what training trains.

    Args:
        queries: how many; at least as many tokens as stay, of which the first are used.
        layers, heads, mlp: depth, attention heads, and width of the feed-forward in multiples of the decoder's.
        weights: safetensors file of the trained module; without it the module is as initialised, with one warning.
        seed: of the initialisation.
    """

    queries: int = 64
    layers: int = 2
    heads: int = 8
    mlp: int = 4
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise PrunekitError(f"reducer.{name} must be at least 1, not {getattr(self, name)}")
        if self.weights is not None and not Path(self.weights).is_file():
            raise PrunekitError(f"reducer.weights: no file '{self.weights}'")
        self._module: Resampler | None = None

    def make_layer(self, width: int, number: int) -> nn.Module:
        """Layer ``number`` of the module for a decoder of this width."""
        raise TypeError(f"{type(self).__name__} defines no make_layer(width, number)")

    def check(self, depth: int) -> None:
        if self.weights is None and self._module is None:
            name = self.registered_name
            warnings.warn(f"reducer '{name}' has no weights file (reducer.weights=PATH): not trained", stacklevel=2)

    def module(self, width: int) -> Resampler:
        """The module for a decoder of this width, float32: made, or read from ``weights``, at the first call.

        Raises:
            PrunekitError: for heads that do not divide the width, and weights that do not fit.
        """
        if self._module is None:
            if width % self.heads:
                raise PrunekitError(f"reducer.heads: {self.heads} heads do not divide the decoder's width {width}")
            # Parameters made inside inference mode could never be trained.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                resampler = Resampler(width, self.queries, self.layers, lambda number: self.make_layer(width, number))
                self._module = load_module(resampler, self.weights) if self.weights else resampler
        return self._module

    def compress(self, tokens: torch.Tensor, alive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if (most := int(counts.max())) > self.queries:
            name = self.registered_name
            raise PrunekitError(f"reducer '{name}' has {self.queries} queries, but {most} tokens are to stay")
        return self.module(tokens.shape[-1]).to(tokens.device)(tokens, alive)

    def save_weights(self, path: Path) -> bool:
        from safetensors.torch import save_file

        if self._module is None:
            return False
        save_file({name: x.detach().contiguous() for name, x in self._module.state_dict().items()}, str(path))
        return True


def load_module(module: Resampler, path: str) -> Resampler:
    """The module with the parameters of a safetensors file; raises in one line where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PrunekitError(f"reducer.weights: '{path}' does not fit this module: {reason}") from None
    return module


@register("reducer", "perceiver")
@dataclass
class Perceiver(TrainedCompressor):
    """Perceiver Resampler (Flamingo: a Visual Language Model for Few-Shot Learning, NeurIPS 2022,
    https://arxiv.org/abs/2204.14198, section 2.1): latents attend to the visual tokens and to themselves."""

    def make_layer(self, width: int, number: int) -> nn.Module:
        return PerceiverLayer(width, self.heads, self.mlp)


@register("reducer", "qformer")
@dataclass
class QFormer(TrainedCompressor):
    """Q-Former (BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models,
    ICML 2023, https://arxiv.org/abs/2301.12597, section 3.1): queries attend to each other and, in every second layer,
    to the visual tokens. Blind to the question, as BLIP-2's."""

    def make_layer(self, width: int, number: int) -> nn.Module:
        return QFormerLayer(width, self.heads, self.mlp, cross=number % 2 == 0)
