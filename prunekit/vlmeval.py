"""prunekit as a model of VLMEvalKit: ``python -m prunekit.vlmeval --config FILE``, "class": "Prunekit" in the file.

VLMEvalKit knows a model by what it calls: ``generate`` with a list of texts, images and videos. Nothing of it is
imported but by the command.
"""

from __future__ import annotations

import inspect
import runpy
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunekit.data.example import Example
from prunekit.data.pictures import Picture
from prunekit.data.videos import Sampling, Video
from prunekit.digests import digest
from prunekit.errors import PrunekitError, RowError
from prunekit.evaluation.answers import answer_all
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import BatchLimit
from prunekit.lmms import pruner_of, split
from prunekit.models import load_model
from prunekit.prompts import special_tokens

FAILED = "Failed to obtain answer: "
"""What VLMEvalKit's own answers begin with where there is none: it counts them and can ask again."""


class Interleaved(Batcher):
    """Asks with texts and media in the order of a message, unless ``model.prompt`` says how to ask."""

    content: Sequence[Mapping[str, str]] = ()

    def prompt(self, example: Example) -> str:
        if self.loaded.prompt is not None:
            return super().prompt(example)
        message = {"role": "user", "content": list(self.content)}
        return self.loaded.processor.apply_chat_template([message], add_generation_prompt=True)


class Prunekit:
    """A model of VLMEvalKit, pruned.

    Args:
        pretrained: a hub id, a local folder, or an embedded model ("mini").
        max_new_tokens: the longest answer.
        nframe, fps: frames of a video; VLMEvalKit puts those of its data set in their place.
        options: those of ``prunekit.models.load_model`` (``dtype``, ``attn``, ``quantization``, …), and the pruner's as
            for lmms-eval (``method``, ``keep_ratio``, ``schedule.layer``, …).

    Raises:
        PrunekitError: for unknown names, and what the model cannot do.
    """

    INTERLEAVE = True
    VIDEO_LLM = True
    is_api = False

    def __init__(
        self, pretrained: str, max_new_tokens: int = 512, nframe: int = 8, fps: float = -1, **options: object
    ) -> None:
        own, rest = split(options, [n for n in inspect.signature(load_model).parameters if n != "name"])
        self.pruner, self.max_new_tokens, self.nframe, self.fps = pruner_of(own), max_new_tokens, nframe, fps
        self.batcher = Interleaved(load_model(pretrained, **rest))
        self.pruner.apply(self.batcher.loaded.model).remove()  # what the model cannot do is said before any question
        print(f"prunekit: {self.pruner} on {type(self.batcher.loaded.model).__name__}")

    def set_dump_image(self, dump_image: Callable[..., Any]) -> None:
        """The data set's own way to write images to files; its messages name the files already."""

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Whether the model words a data set's questions itself."""
        return False

    def generate(self, message: str | Sequence[str | Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to a message: texts, and paths of images and of a video, as ``{"type": …, "value": …}``.

        An example that cannot be used is answered by ``FAILED`` and the reason, so that the run goes on.
        """
        parts = [message] if isinstance(message, str) else message
        named = [{"type": "text", "value": part} if isinstance(part, str) else part for part in parts]
        self.batcher.content = [
            {"type": "text", "text": part["value"]} if part["type"] == "text" else {"type": part["type"]}
            for part in named
        ]
        media = [part for part in named if part["type"] != "text"]
        try:
            if not media:
                return self._text_alone()
            example = self._example(media, "\n".join(p["value"] for p in named if p["type"] == "text"))
            one = BatchLimit(1)
            ((_, answer),) = answer_all(
                self.batcher,
                [example],
                self.pruner,
                limit=one,
                max_new_tokens=self.max_new_tokens,
                progress=lambda _: None,
            )
        except RowError as error:
            answer = error
        self.batcher.forget()
        if isinstance(answer, RowError):
            warnings.warn(str(answer), stacklevel=2)
            return f"{FAILED}{answer}"
        return answer.text

    def _example(self, media: Sequence[Mapping[str, str]], question: str) -> Example:
        for part in media:
            if part["type"] not in ("image", "video"):
                raise RowError(f"a message holds '{part['type']}', which is neither text nor image nor video")
        images = tuple(Picture(Path(p["value"]), p["value"]) for p in media if p["type"] == "image")
        films = [Path(part["value"]) for part in media if part["type"] == "video"]
        if len(films) > 1:
            raise RowError(f"a message holds {len(films)} videos; one is read")
        sampling = Sampling(frames=self.nframe) if self.nframe and self.nframe > 0 else Sampling(fps=self.fps)
        video = Video(films[0], str(films[0]), sampling) if films else None
        names = [*(str(picture.source) for picture in images), *map(str, films)]
        first = names.pop(-1 if films else 0)
        place = len(names) if films else 0
        return Example(
            digest(f"{media} {question}"), first, "vlmeval", question, ("",), others=tuple(names), place=place,
            pictures=images, video=video,
        )  # fmt: skip

    def _text_alone(self) -> str:
        """The dense model's answer: there is nothing to prune."""
        loaded = self.batcher.loaded
        message = {"role": "user", "content": list(self.batcher.content)}
        prompt = loaded.processor.apply_chat_template([message], add_generation_prompt=True)
        options = special_tokens(loaded.processor, [prompt])
        inputs = loaded.processor(text=[prompt], return_tensors="pt", **options).to(loaded.model.device)
        with torch.inference_mode():
            tokens = loaded.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        (text,) = loaded.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()


def main() -> None:
    """VLMEvalKit's own command, with the class ``Prunekit`` among its models: the ``run.py`` of the folder that this is
    called in, a checkout's, or the one of the installed package."""
    try:
        import vlmeval.vlm
    except ImportError as error:
        sys.exit(f"prunekit: error: VLMEvalKit cannot be imported: {error}")
    vlmeval.vlm.Prunekit = Prunekit
    try:
        if Path("run.py").is_file():
            runpy.run_path("run.py", run_name="__main__")
        else:
            runpy.run_module("vlmeval.run", run_name="__main__", alter_sys=True)
    except PrunekitError as error:
        sys.exit(f"prunekit: error: {error}")


if __name__ == "__main__":
    main()
