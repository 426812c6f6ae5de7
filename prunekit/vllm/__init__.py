"""The vLLM plug-in: input-side pruning for models of vLLM's Transformers backend.

vLLM calls ``register`` in each of its processes, by the entry point ``vllm.general_plugins``; nothing else of prunekit
imports vLLM. ``options`` and ``cut`` are plain prunekit and torch, ``processor`` and ``model`` stand on vLLM.
"""

from __future__ import annotations

TESTED = "0.32.0"
"""The version of vLLM that the tests run."""


def register() -> None:
    """Make the architecture known to vLLM. Light, and harmless when called again."""
    from vllm import ModelRegistry

    from prunekit.pruning.saving import ARCHITECTURE

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "prunekit.vllm.model:PrunekitForConditionalGeneration")
