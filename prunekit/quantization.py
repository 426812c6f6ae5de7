"""Weights of a decoder's layers in 8 or 4 bits.

What enters and leaves a layer keeps its type: no token's numbers depend on another token's, so that removal stays
exact. LLM.int8() and other quantised activations would not keep that.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from prunekit.errors import PrunekitError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMES = ("int8", "int4", "nf4")
GROUP = 32
"""Weights of an output that share a scale in 4 bits of integers, at most: as many as the widths are multiples of."""

NF4_BLOCK = 64
"""Weights that share a scale in ``nf4``."""


def quantise(model: PreTrainedModel, scheme: str) -> PreTrainedModel:
    """The model with the linear layers of its decoder quantised, in place; the vision encoder, the projector,
    embeddings and the head stay as they are.

    ``int8``: torchao, a scale an output. ``int4``: torchao, a scale for every ``GROUP`` weights of an output; each
    weight is held in a byte of its own, so that it runs everywhere. ``nf4``: bitsandbytes, 4-bit NormalFloat, two a
    byte.

    Raises:
        PrunekitError: for a package that is not installed, weights whose shape does not fit, and a model that is
            quantised already.
    """
    check_choice("model.quantization", scheme, SCHEMES)
    from prunekit.families import make_family

    if getattr(model.config, "quantization_config", None) is not None:
        raise PrunekitError(f"model.quantization={scheme}: this model's weights are quantised already")
    layers = make_family(model).layers
    try:
        for layer in layers:
            if scheme == "nf4":
                _to_nf4(layer)
            else:
                _by_torchao(layer, scheme)
    except (ImportError, OSError) as error:
        package = "bitsandbytes" if scheme == "nf4" else "torchao"
        reason = " ".join(str(error).split())[:200]
        raise PrunekitError(
            f"model.quantization={scheme} needs {package}: pip install 'prunekit[quantization]' ({reason})"
        ) from None
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrunekitError(f"model.quantization={scheme} does not fit this model: {reason}") from None
    return model


def _by_torchao(layer: nn.Module, scheme: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    if scheme == "int8":
        quantize_(layer, Int8WeightOnlyConfig())
    else:
        widths = [module.in_features for module in layer.modules() if isinstance(module, nn.Linear)]
        quantize_(layer, IntxWeightOnlyConfig(torch.int4, PerGroup(math.gcd(GROUP, *widths))))  # type: ignore[attr-defined]


def _to_nf4(layer: nn.Module) -> None:
    import bitsandbytes

    for parent in list(layer.modules()):
        for name, linear in parent.named_children():
            if type(linear) is nn.Linear:
                if linear.in_features % NF4_BLOCK:  # bitsandbytes mixes up blocks that run over the end of a row
                    raise ValueError(f"{name} has {linear.in_features} inputs, no multiple of {NF4_BLOCK}")
                device = linear.weight.device
                small = bitsandbytes.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=linear.weight.dtype,
                    quant_type="nf4",
                )
                small.weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data.cpu(), requires_grad=False, quant_type="nf4"
                )
                small.bias = linear.bias
                setattr(parent, name, small.to(device))


def hush_torchao() -> None:
    """Leave out what torch remarks about torchao's own code whenever transformers, which imports it, is imported."""
    logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())
