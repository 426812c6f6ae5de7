"""What went wrong when a model was loaded, in one line that says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path


def missing_parts(name: str) -> str | None:
    """Why a local folder cannot be a saved model, None if nothing speaks against it (or it is no folder)."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        return f"model '{name}': the folder has no config.json, so it is no model written by save_pretrained"
    processors = ("processor_config.json", "preprocessor_config.json")
    if not any((folder / file).is_file() for file in processors):
        kind = _model_type(folder)
        return (
            f"model '{name}' ({kind}) has no processor: neither of {' and '.join(processors)} is in the folder; a "
            "vision-language model is saved with model.save_pretrained and processor.save_pretrained"
        )
    return None


def _model_type(folder: Path) -> str:
    try:
        return f"model type {json.loads((folder / 'config.json').read_text())['model_type']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "model type unknown"


def loading_failed(name: str, error: Exception, attn: str, revision: str | None, where: str) -> str:
    """The line for an exception of transformers, accelerate or the hub's client; ``where``: that of ``not_found``."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return (
            f"model '{name}' does not fit in memory: dtype=bfloat16 halves it, model.device_map=auto spreads "
            f"it over devices, device=cpu leaves the GPU out ({_sentence(text)})"
        )
    if "Unrecognized configuration class" in text or "Unrecognized processing class" in text:
        return f"model '{name}' is not a vision-language model that transformers can load for image-text-to-text"
    if "trust_remote_code" in text:
        return (
            f"model '{name}' runs code of its own repository; read it, and if you trust it, set "
            "model.trust_remote_code=true (pin what you read by model.revision)"
        )
    if "scaled_dot_product_attention" in text:
        return f"model '{name}' has no attn={attn}; use attn=eager"
    if "attn_implementation" in text or re.search(r"[Ff]lash ?[Aa]ttention|flash_attn|flex_attention|`kernels`", text):
        return f"model '{name}': attn={attn} does not work here: {_sentence(text)}"
    if "accelerate" in text and isinstance(error, ImportError | ValueError):
        return f"model '{name}': model.device_map needs accelerate: pip install 'prunekit[train]'"
    if "device_map" in text:
        return f"model '{name}': model.device_map does not fit: {_sentence(text)}"
    if "gated repo" in text or "401 Client Error" in text:
        return f"model '{name}' is gated on the hub: accept its terms there and log in with `hf auth login`"
    if revision and ("valid git identifier" in text or "Revision Not Found" in text):
        return f"model '{name}' has no revision '{revision}'"
    if isinstance(error, OSError) and not Path(name).exists():
        return where
    return f"model '{name}' could not be loaded: {type(error).__name__}: {text[:300]}"


def not_found(name: str, revision: str | None, why_offline: str, embedded: list[str]) -> str:
    """For a model that is nowhere: where it was looked for, and how to have it."""
    from huggingface_hub import constants

    at = f" at revision '{revision}'" if revision else ""
    hub = why_offline or f"not at {constants.ENDPOINT}, or private there"
    return (
        f"model '{name}' not found: no such folder, not in the local cache{at} ({constants.HF_HUB_CACHE}), and {hub}; "
        f"set model.name to a local folder (on a machine with network: hf download {name} --local-dir FOLDER), or use "
        f"an embedded model ({', '.join(embedded)})"
    )


def _sentence(text: str) -> str:
    """The first one."""
    return re.split(r"\.\s+(?=[A-Z])", text)[0][:200]
