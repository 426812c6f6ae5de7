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
    """The example's images, earlier turns and question, as the chat template or ``model.prompt`` puts them.

    Raises:
        PrunekitError: for a processor without chat template where no ``model.prompt`` is given, a template that refuses
            the turns, and earlier turns in a ``model.prompt``, which has no place for them.
    """
    if loaded.prompt is not None:
        return _filled(loaded, example)
    try:
        return loaded.processor.apply_chat_template(turns(example), add_generation_prompt=True)
    except Exception as error:  # templates raise jinja's errors, their own, and those of Python
        raise PrunekitError(_refused(loaded, error)) from None


def turns(example: Example) -> list[dict[str, Any]]:
    """The example as messages: images before all text, question and answer in turns."""
    made: list[dict[str, Any]] = []
    for question, answer in example.history:
        made.append({"role": "user", "content": [{"type": "text", "text": question}]})
        made.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    made.append({"role": "user", "content": [{"type": "text", "text": example.question}]})
    made[0]["content"] = [{"type": "image"} for _ in example.image_ids] + made[0]["content"]
    return made


def special_tokens(processor: ProcessorMixin, prompts: Sequence[str]) -> dict[str, bool]:
    """Options for the processor: where the template has written the first token, the tokenizer must not add another."""
    first = getattr(getattr(processor, "tokenizer", processor), "bos_token", None)
    return {"add_special_tokens": False} if first and all(text.startswith(first) for text in prompts) else {}


def _filled(loaded: LoadedModel, example: Example) -> str:
    if example.history:
        raise PrunekitError(f"model '{loaded.name}': model.prompt has no place for the earlier turns of '{example.id}'")
    token = getattr(loaded.processor, "image_token", None) or "<image>"
    parts = {"images": str(token) * len(example.image_ids), "question": example.question}
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], loaded.prompt or "")


def _refused(loaded: LoadedModel, error: Exception) -> str:
    if not getattr(loaded.processor, "chat_template", None):
        return f"model '{loaded.name}': its processor has no chat template; say how to ask, for example {SUGGESTION}"
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"model '{loaded.name}': its chat template refuses the question: {line}"
