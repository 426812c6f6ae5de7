"""What trains: freezing, and the modules that each kind of training opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prunekit.components.compressors import TrainedCompressor
from prunekit.components.fusions import LearnedFusion
from prunekit.errors import PrunekitError
from prunekit.families import make_family
from prunekit.pruning.pruner import Pruner
from prunekit.registry import registry
from prunekit.train.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_learned_fusion(pruner: Pruner, kind: str) -> Pruner:
    """For ``train=fusion``: the uniform mean over layers becomes the weighted one that starts like it."""
    name = pruner.fusion.registered_name
    if kind != "fusion" or name == "learned":
        return pruner
    plain = name == "multi" and pruner.fusion == registry.create("fusion", "multi")
    if not plain:
        raise PrunekitError(f"train=fusion trains the weights of fusion 'learned'; fusion '{name}' has none")
    return pruner.replace(fusion=registry.create("fusion", "learned"))


def open_parts(
    model: nn.Module, pruner: Pruner, settings: Settings, seed: int = 0
) -> tuple[nn.Module, nn.ParameterDict, nn.Module]:
    """Freeze ``model`` but for what trains: the model (wrapped by PEFT for LoRA), the pruner's own parameters, and its
    module (a compressor's, or an empty one).

    Raises:
        PrunekitError: where there is nothing to open.
    """
    family, kind = make_family(model), settings.kind
    model.requires_grad_(kind == "full")
    own, module = nn.ParameterDict(), nn.Module()
    if kind == "projector":
        if (projector := family.projector) is None:
            raise PrunekitError(f"train=projector: '{family.model_type}' has no module between encoder and decoder")
        projector.requires_grad_(True)
    if kind == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = add_lora(model, settings)
    if kind == "compressor":
        if not isinstance(pruner.reducer, TrainedCompressor):
            name = pruner.reducer.registered_name
            raise PrunekitError(f"train=compressor: reducer '{name}' has no module to train (perceiver, qformer)")
        module = pruner.reducer.module(family.text_config.hidden_size)
        module.requires_grad_(True)
    if kind != "compressor" and isinstance(pruner.fusion, LearnedFusion):
        own["fusion"] = pruner.fusion.parameter(family.depth)
    if not any(p.requires_grad for part in (model, own, module) for p in part.parameters()):
        raise PrunekitError(f"train={kind}: nothing to train, everything in '{family.model_type}' is frozen")
    return model, own, module


def add_lora(model: PreTrainedModel, settings: Settings) -> nn.Module:
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) on the linear layers of the decoder's
    attention, or on those whose name ends with one of ``lora_targets``."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise PrunekitError("train=lora needs peft: pip install 'prunekit[train]'") from None
    targets = lora_targets(model, settings.lora_targets)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
    )
    return get_peft_model(model, config)


def lora_targets(model: nn.Module, wanted: list[str] | None) -> list[str]:
    """Full names of the linear layers to adapt."""
    family, names = make_family(model), {module: name for name, module in model.named_modules()}
    if wanted is None:
        inside = [m for attention in family.attentions if attention is not None for m in attention.modules()]
    else:
        inside = [m for m, name in names.items() if name.split(".")[-1] in wanted]
    found = [names[m] for m in inside if isinstance(m, nn.Linear)]
    if not found:
        what = "its attention has no linear layers" if wanted is None else f"no linear layers called {wanted}"
        raise PrunekitError(f"train=lora: nothing to train in '{family.model_type}': {what}")
    return found
