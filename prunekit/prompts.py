"""From an example to the text that a model's processor gets: its chat template, or a prompt of the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.data.example import Example
from prunekit.errors import PrunekitError
from prunekit.loaded import LoadedModel

if TYPE_CHECKING:
    from transformers import ProcessorMixin

PLACEHOLDERS = ("images", "question")
SUGGESTION = r"""model.prompt='"USER: {images}\n{question} ASSISTANT:"'"""


def prompt_for(loaded: LoadedModel, example: Example) -> str:
    """The example's images, video, earlier turns and question, as the chat template or ``model.prompt`` puts them.

    Raises:
        PrunekitError: for a processor without chat template where no ``model.prompt`` is given, a template that refuses
            the turns or drops the video, earlier turns in a ``model.prompt``, which has no place for them, and a video
            for a model that takes none.
    """
    if example.video is not None and getattr(loaded.processor, "video_processor", None) is None:
        raise PrunekitError(
            f"model '{loaded.name}' takes no videos: {type(loaded.processor).__name__} reads images alone"
        )
    if loaded.prompt is not None:
        return _filled(loaded, example)
    try:
        prompt = loaded.processor.apply_chat_template(turns(example), add_generation_prompt=True)
    except Exception as error:  # templates raise jinja's errors, their own, and those of Python
        raise PrunekitError(_refused(loaded, error)) from None
    if example.video is not None and _token(loaded, "video") not in prompt:
        raise PrunekitError(
            f"model '{loaded.name}': its chat template leaves the video out; say how to ask: {SUGGESTION}"
        )
    return prompt


def turns(example: Example) -> list[dict[str, Any]]:
    """The example as messages: images, then the video, before all text; question and answer in turns."""
    messages: list[dict[str, Any]] = []
    for question, answer in example.history:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    messages.append({"role": "user", "content": [{"type": "text", "text": example.question}]})
    messages[0]["content"] = [{"type": kind} for kind in example.media] + messages[0]["content"]
    return messages


def special_tokens(processor: ProcessorMixin, prompts: Sequence[str]) -> dict[str, bool]:
    """Options for the processor: where the template has written the first token, the tokenizer must not add another."""
    first = getattr(getattr(processor, "tokenizer", processor), "bos_token", None)
    return {"add_special_tokens": False} if first and all(text.startswith(first) for text in prompts) else {}


def _filled(loaded: LoadedModel, example: Example) -> str:
    if example.history:
        raise PrunekitError(f"model '{loaded.name}': model.prompt has no place for the earlier turns of '{example.id}'")
    shown = "".join(_token(loaded, kind) for kind in example.media)
    parts = {"images": shown, "question": example.question}
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], loaded.prompt or "")


def _token(loaded: LoadedModel, kind: str) -> str:
    """What stands for an image or a video in a prompt."""
    return str(getattr(loaded.processor, f"{kind}_token", None) or f"<{kind}>")


def _refused(loaded: LoadedModel, error: Exception) -> str:
    if not getattr(loaded.processor, "chat_template", None):
        return f"model '{loaded.name}': its processor has no chat template; say how to ask, for example {SUGGESTION}"
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"model '{loaded.name}': its chat template refuses the question: {line}"
