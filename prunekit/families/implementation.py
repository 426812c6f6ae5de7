"""Which attention implementation a config asks for, also while a session has put its own name in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def untapped(config: PretrainedConfig) -> Any:
    """The model's own config behind what a tapped module sees (``engine.tap``), or the config itself."""
    return vars(config).get("tap_config", config)


def implementation_of(config: PretrainedConfig) -> str:
    """The name of the attention implementation that a config asks for now, whether it is tapped or not."""
    return getattr(untapped(config), "_attn_implementation", None) or "eager"
