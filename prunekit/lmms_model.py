"""The model that lmms-eval drives; imported by lmms-eval alone (see ``prunekit.lmms``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from lmms_eval.models.chat.huggingface import Huggingface
from lmms_eval.utils import simple_parse_args_string

from prunekit import ranks
from prunekit.data.videos import Sampling, Video, clip_inputs
from prunekit.errors import PrunekitError
from prunekit.lmms import pruner_of, split
from prunekit.models import EMBEDDED, load_model


class Processor:
    """A processor as lmms-eval calls it, with ``images``, ``videos`` and ``audios`` whether there are any or not: what
    is empty stays away, and ``audios`` goes by transformers' name for it. Of a video's file come up to ``frames``
    frames, as prunekit samples them. Floats come in the model's dtype."""

    def __init__(self, processor: Callable[..., Any], dtype: torch.dtype, frames: int) -> None:
        self._processor, self._dtype, self._sampling = processor, dtype, Sampling.up_to(frames)

    def __call__(self, audios: object = None, videos: Sequence[Any] = (), **options: object) -> Any:
        inputs = {key: value for key, value in {**options, "audio": audios}.items() if value not in (None, [])}
        if videos:
            inputs |= clip_inputs([Video(_file(video), str(video), self._sampling).load() for video in videos])
        return self._processor(**inputs).to(dtype=self._dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _file(video: object) -> Path:
    """The file of a video as lmms-eval hands it over. Raises PrunekitError for a part of one, and an address."""
    if not isinstance(video, str | Path) or "://" in str(video):
        raise PrunekitError(
            f"a video must be a file, not {video!r}: parts of videos and addresses need one of lmms-eval's own chat "
            "models, by base=NAME"
        )
    return Path(video)


class Prunekit(Huggingface):
    """lmms-eval's generic chat model, loaded by prunekit and pruned for as long as it lives.

    ``base=qwen2_5_vl`` (any chat model of lmms-eval that holds a transformers model in ``.model``) prunes that one
    instead: its own loading, prompts and video sampling stay as they are.

    Args:
        pretrained: a hub id, a local folder, or an embedded model ("mini").
        dtype, attn, device, device_map, revision, trust_remote_code, adapter, quantization: as on prunekit's command
            line.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        device_map: str | None = None,
        batch_size: int | str = 1,
        dtype: str = "auto",
        attn: str = "sdpa",
        revision: str | None = None,
        trust_remote_code: bool = False,
        adapter: str | None = None,
        quantization: str | None = None,
        use_cache: bool = True,
        system_prompt: str | None = None,
        max_num_frames: int = 32,
    ) -> None:
        if type(max_num_frames) is not int or max_num_frames < 1:
            raise PrunekitError(f"max_num_frames must be a whole number from 1 on, not {max_num_frames!r}")
        lmms.__init__(self)  # the parent's own loads a model
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        loaded = load_model(
            pretrained,
            device="auto" if ranks.world() > 1 else device,  # each process its own
            dtype=dtype,
            attn=attn,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            quantization=quantization,
        )
        self._model, self._config = loaded.model, loaded.model.config
        self.processor = Processor(loaded.processor, loaded.model.dtype, max_num_frames)
        self._tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
        self._device = loaded.model.device  # where inputs go, also of a model over several devices
        self.device_map = str(self._device)
        self.batch_size_per_gpu, self.use_cache = int(batch_size), use_cache
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.interleave_visuals, self.max_num_frames, self._max_length = False, max_num_frames, 2048
        self.trust_remote_code = trust_remote_code

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, object] | None = None) -> lmms:
        """The model of ``--model_args``, pruned; lmms-eval calls this with ``batch_size`` and ``device`` beside it."""
        arguments = simple_parse_args_string(arg_string)
        base = arguments.pop("base", None)
        kind = cls if base is None else _chat_model(base)
        own, rest = split(arguments, inspect.signature(kind).parameters)
        if "pretrained" in rest and base is not None:
            rest["pretrained"] = str(EMBEDDED.get(rest["pretrained"], rest["pretrained"]))
        pruner = pruner_of(own)
        options: dict[str, Any] = {key: value for key, value in (additional_config or {}).items() if value is not None}
        if base is not None and ranks.world() == 1:  # some of lmms-eval's defaults for it fail in transformers 5
            options["device_map"] = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        wrapper = kind(**{**_accepted(kind, options), **rest})
        if not isinstance(model := getattr(wrapper, "model", None), torch.nn.Module):
            raise PrunekitError(f"base={base}: lmms-eval's model holds no transformers model that could be pruned")
        wrapper.pruned = pruner.apply(model)
        print(f"prunekit: {pruner} on {type(model).__name__}")
        return wrapper


def _chat_model(base: str) -> Any:
    try:
        return get_model(base)
    except (ImportError, ValueError, TypeError) as error:
        raise PrunekitError(f"base={base}: lmms-eval has no such chat model here: {error}") from None


def _accepted(kind: type, options: Mapping[str, object]) -> dict[str, Any]:
    """Those of lmms-eval's own settings that a model takes."""
    parameters = inspect.signature(kind).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) and kind is not Huggingface
    return {key: value for key, value in options.items() if key in parameters or anything}
