"""Which attention implementation a config asks for, also while a session has put its own name in the way."""

from __future__ import annotations

from typing import Any


def untapped(config: Any) -> Any:
    """The model's own config behind what a tapped module sees (``engine.tap``), or the config itself."""
    return vars(config).get("tap_config", config)


def implementation_of(config: Any) -> str:
    """The name of the attention implementation that a config asks for now, whether it is tapped or not."""
    return getattr(untapped(config), "_attn_implementation", None) or "eager"
