"""Loading models: the embedded one, or any Hugging Face LVLM, with its processor."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit import ranks
from prunekit.adapters import attach, weights_digest
from prunekit.data.rows import parse_prompt
from prunekit.digests import digest
from prunekit.errors import PrunekitError, UnknownNameError, check_choice
from prunekit.loaded import LoadedModel
from prunekit.model_errors import loading_failed, missing_parts, not_found
from prunekit.network import offline
from prunekit.prompts import PLACEHOLDERS, SUGGESTION
from prunekit.quantization import hush_torchao, quantise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

EMBEDDED = {name: Path(__file__).parent / "assets" / name for name in ("mini", "mini-576")}
"""Models that ship with the package, by name."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
WHOLE_FILE = 256 * 2**20
"""Files up to this size are hashed whole for the digest, larger ones by size and time of change."""


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, of several processes each its own; a device that is missing raises."""
    if device == "auto":
        if torch.cuda.is_available() and ranks.world() > 1:
            return torch.device("cuda", ranks.local_rank() % torch.cuda.device_count())
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


def check_attn(attn: str) -> None:
    """Raise for an attention implementation that transformers does not know (kernels of the hub, "org/name", pass)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if "/" not in str(attn):
        check_choice("attn", attn, ("eager", *(n for n in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in n)))


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "sdpa",
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    prompt: str | None = None,
    adapter: str | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """An embedded model by name ("mini", "mini-576"), a local folder, or a hub id; with the LoRA ``adapter`` or the
    trained weights of the folder of a training run in it, its decoder's weights then quantised.

    Args:
        trust_remote_code: run code of the model's repository; never without being told so.
        prompt: what to ask with in place of the processor's chat template, see ``prunekit.prompts``.
        quantization: one of ``prunekit.quantization.SCHEMES``.

    Raises:
        PrunekitError: if there is no such model, it is not a vision-language model, or an option does not fit it.
    """
    hush_torchao()
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    asked = parse_prompt(prompt, "model.prompt", PLACEHOLDERS, SUGGESTION)
    check_attn(attn)
    source = str(EMBEDDED.get(name, name))
    if wrong := missing_parts(source):
        raise PrunekitError(wrong)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    why_offline = "" if Path(source).is_dir() else offline()
    if why_offline:
        options["local_files_only"] = True
    try:
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=number, attn_implementation=attn, device_map=device_map, **options
        )
        if device_map is None:
            model = model.to(place)
    except Exception as error:  # transformers, accelerate, safetensors and the hub's client all raise their own
        where = not_found(name, revision, why_offline, list(EMBEDDED))
        raise PrunekitError(loading_failed(name, error, attn, revision, where)) from error
    _make_ready(name, processor)
    mark = _model_digest(source, model, attn)
    if asked is not None:
        mark = digest(f"{mark} {asked}", 32)
    if adapter is not None:
        model, mark = attach(model, adapter), f"{mark}-{weights_digest(adapter)}"
    if quantization is not None:
        model, mark = quantise(model, quantization), f"{mark}-{quantization}"
    return LoadedModel(model.eval(), processor, name, mark, asked)


def _make_ready(name: str, processor: ProcessorMixin) -> None:
    """Padding on the left, as generation needs it; raises for a processor that takes no images."""
    if getattr(processor, "image_processor", None) is None:
        raise PrunekitError(f"model '{name}': its processor ({type(processor).__name__}) takes no images")
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def source_digest(name: str) -> str:
    """Digest of the files of a local or embedded model, without loading it; of a hub id, the name's alone."""
    content, folder = hashlib.sha256(), EMBEDDED.get(name, Path(name))
    if not folder.is_dir():
        content.update(name.encode())
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model"):
            content.update(path.name.encode() + _content(path))
    return content.hexdigest()[:32]


def _content(path: Path) -> bytes:
    stat = path.stat()
    return path.read_bytes() if stat.st_size <= WHOLE_FILE else f"{stat.st_size} {stat.st_mtime_ns}".encode()


def file_digest(path: Path) -> str:
    """Digest of a file's content; of a large one's size and time of change."""
    return digest(_content(path))


def _model_digest(source: str, model: PreTrainedModel, attn: str) -> str:
    state = f"{model.dtype} {attn} {getattr(model.config, '_commit_hash', None)} {source_digest(source)}"
    return digest(state, 32)
