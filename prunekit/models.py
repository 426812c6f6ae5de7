"""Loading models: the embedded one, or any Hugging Face LVLM, with its processor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import PrunekitError, UnknownNameError, check_choice

EMBEDDED = {"mini": Path(__file__).parent / "assets" / "mini"}
"""Models that ship with the package, by name."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
WHOLE_FILE = 256 * 2**20
"""Files up to this size are hashed whole for the fingerprint, larger ones by size and time of change."""


@dataclass
class LoadedModel:
    """A model ready to evaluate.

    Attributes:
        fingerprint: changes when weights, config or dtype do; dense results are cached under it.
    """

    model: Any
    processor: Any
    name: str
    fingerprint: str


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one; a device that is missing raises."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UnknownNameError("device", device, ("auto", "cpu", "cuda", "cuda:0")) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise PrunekitError(f"device={device}: no CUDA device here")
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA and float32 on a CPU (many have no bf16 units, and crawl)."""
    check_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "sdpa",
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapter: str | None = None,
) -> LoadedModel:
    """An embedded model by name ("mini"), a local folder, or a hub id; with the LoRA ``adapter`` or the trained weights
    of the folder of a training run in it.

    Raises:
        PrunekitError: if there is no such model, or it is not a vision-language model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    place = resolve_device(device)
    source = str(EMBEDDED.get(name, name))
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=resolve_dtype(dtype, place), attn_implementation=attn, device_map=device_map, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PrunekitError(_loading_failed(name, error)) from None
    if device_map is None:
        model = model.to(place)
    mark = _fingerprint(source, model, attn)
    if adapter is not None:
        from prunekit.train.artifacts import attach, digest

        model, mark = attach(model, adapter), f"{mark}-{digest(adapter)}"
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    return LoadedModel(model, processor, name, mark)


def _loading_failed(name: str, error: Exception) -> str:
    first = " ".join(str(error).split())
    if "Unrecognized configuration class" in first or "Unrecognized processing class" in first:
        return f"model '{name}' is not a vision-language model that transformers can load for image-text-to-text"
    if isinstance(error, OSError) and not Path(name).exists():
        embedded = ", ".join(EMBEDDED)
        return (
            f"model '{name}' not found: no such folder, not in the local cache, and the hub cannot be reached; "
            f"set model.name to a local folder, or use an embedded model ({embedded})"
        )
    return f"model '{name}' could not be loaded: {type(error).__name__}: {first[:300]}"


def _fingerprint(source: str, model: Any, attn: str) -> str:
    digest = hashlib.sha256(f"{model.dtype} {attn} {getattr(model.config, '_commit_hash', None)}".encode())
    folder = Path(source)
    if not folder.is_dir():
        digest.update(source.encode())
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model"):
            stat = path.stat()
            small = stat.st_size <= WHOLE_FILE
            content = path.read_bytes() if small else f"{stat.st_size} {stat.st_mtime_ns}".encode()
            digest.update(path.name.encode() + content)
    return digest.hexdigest()[:32]
