"""Wrappers around a model or a part of it: PEFT, data parallelism, FSDP, torch.compile, accelerate."""

from __future__ import annotations

from torch import nn

AROUND = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers of parts of a model call the part: torch.compile, FSDP, activation checkpointing."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers (PEFT, DistributedDataParallel, FSDP, torch.compile, accelerate), however many there
    are; the module itself where there is none."""
    inner: nn.Module | None = model
    while inner is not None:
        if _is_model(inner):
            return inner
        inner = _inside(inner)
    return model


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps: PEFT says it, any other holds one module alone, or calls it ``module`` (DeepSpeed)."""
    if hasattr(module, "get_base_model"):
        return module.get_base_model()  # type: ignore[operator]
    parts = [part for part in module._modules.values() if part is not None]
    return parts[0] if len(parts) == 1 else module._modules.get("module")


def _is_model(module: nn.Module) -> bool:
    """Whether a module is a model of transformers (or of timm) itself: its config is its own, not one passed on."""
    own = getattr(vars(module).get("config"), "model_type", None) is not None
    return (own and not hasattr(module, "get_base_model")) or is_timm(module)


def is_timm(module: nn.Module) -> bool:
    """Whether a model is one of timm's plain ViTs, without importing timm."""
    return type(module).__module__.startswith("timm.") and hasattr(module, "blocks")


def unwrapped(module: nn.Module) -> nn.Module:
    """A part of a model inside what FSDP or torch.compile put around it alone."""
    while (inner := next((m for name in AROUND if (m := module._modules.get(name)) is not None), None)) is not None:
        module = inner
    return module
