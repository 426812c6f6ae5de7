"""What a forward pass is part of: a call of ``generate``, a loss on labels, or neither.

A prefill may hold more than its prompt: an answer that is trained on or scored, drafts of assisted decoding, what a
generation without a KV cache has written so far. Tokens behind the prompt must not choose which visual tokens stay. The
core model cannot tell them apart; the arguments of the whole model, and of ``generate``, can.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from prunekit.engine.guards import check_replica
from prunekit.errors import PrunekitError
from prunekit.tensors.sequences import real_tokens

IGNORE = -100
"""The label of tokens that are not trained on, as transformers has it."""

PromptMarks = torch.Tensor | Literal["all"]
"""Bool [B, S], True on the prompt; "all" says that every prefill is a prompt and nothing else."""


class Call(threading.local):
    """What the calling thread has entered.

    Attributes:
        depth: how many forward passes of the whole model are running.
        labels: the labels [B, S] it was given, None without.
        generating: whether it runs inside ``generate``.
        prompt_length: tokens of the prompt that ``generate`` was given, None where they are not known.
    """

    depth: int = 0
    labels: torch.Tensor | None = None
    generating: bool = False
    prompt_length: int | None = None


class Caller:
    """Watches the whole model of a session, the one inside all wrappers.

    ``generate`` is watched by an attribute of the instance, which hides the method until ``remove``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.call = model, Call()

    def install(self) -> list[Any]:
        """Put the hooks on, and hand out their handles; later than those of the core model, so that they run first
        where both are one module."""
        names = tuple(inspect.signature(type(self.model).forward).parameters)[1:]
        enter = functools.partial(self._enter, names)
        handles = [
            self.model.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            self.model.register_forward_hook(self._leave, always_call=True),
        ]
        if callable(getattr(self.model, "generate", None)):
            watched = WatchedGenerate(self.model.generate, self.call, "generate" in vars(self.model))  # type: ignore[arg-type]
            self.model.generate = watched  # type: ignore[assignment]
        return handles

    def remove(self) -> None:
        """Give the model its own ``generate`` back. Idempotent."""
        watched = vars(self.model).get("generate")
        if isinstance(watched, WatchedGenerate):
            del self.model.generate
            if watched.of_instance:
                self.model.generate = watched.generate  # type: ignore[assignment, arg-type]

    @property
    def labels(self) -> torch.Tensor | None:
        """The labels [B, S] of the running forward pass. ``model.forward(...)`` called past the hooks, as PEFT does, is
        looked up among the running functions."""
        if self.call.depth:
            return self.call.labels
        frame = sys._getframe()
        while (frame := frame.f_back) is not None:  # type: ignore[assignment]
            if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is self.model:
                return frame.f_locals.get("labels")
        return None

    def _enter(
        self, names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]
    ) -> None:
        check_replica(module, self.model)
        self.call.depth += 1
        labels = {**dict(zip(names, args, strict=False)), **kwargs}.get("labels")
        if labels is not None:
            self.call.labels = labels

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self.call.depth -= 1
        if not self.call.depth:
            self.call.labels = None


class WatchedGenerate:
    """A model's ``generate`` that notes how long its prompt is.

    Args:
        of_instance: whether it stood on the model itself, where it belongs again afterwards, and not on its class.
    """

    of_session = True
    """No part of the model: a copy of it has its own ``generate``."""

    def __init__(self, generate: Callable[..., Any], call: Call, of_instance: bool) -> None:
        self.generate, self.call, self.of_instance = generate, call, of_instance
        functools.update_wrapper(self, generate)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        call = self.call
        outer = call.generating, call.prompt_length
        call.generating, call.prompt_length = True, prompt_length((*args[:1], kwargs.get("inputs")), kwargs)
        try:
            return self.generate(*args, **kwargs)
        finally:
            call.generating, call.prompt_length = outer


def prompt_length(inputs: Iterable[object], kwargs: dict[str, object]) -> int | None:
    """How many tokens ``generate`` was given: token ids among ``inputs`` or by name, else embeddings; else None."""
    for ids in (*inputs, kwargs.get("input_ids")):
        if isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point() and ids.shape[1]:
            return ids.shape[1]
    embeds = kwargs.get("inputs_embeds")
    return embeds.shape[1] if isinstance(embeds, torch.Tensor) else None


@dataclass(frozen=True)
class PromptEnd:
    """Where the prompt of a prefill ends.

    Attributes:
        mask: the prompt among its tokens, bool [B, S]; None for all of them.
        known: whether the caller has said so. Otherwise tokens that follow on the cache may be new words, or the rest
            of a prompt that comes in pieces.
    """

    mask: torch.Tensor | None
    known: bool


def prompt_end(
    caller: Caller,
    marks: PromptMarks | None,
    visual: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor | None] | None,
) -> PromptEnd:
    """The prompt of a prefill with visual tokens at ``visual`` [B, S], by the marks of ``pruner(model, prompt=...)``,
    the labels, and what ``generate`` was given.

    With labels and no marks the prompt ends before the first token that is trained on: later turns of a dialogue have
    seen that answer.

    Raises:
        PrunekitError: for marks and labels that do not fit the batch.
    """
    call, labels, size = caller.call, caller.labels, visual.shape[1]
    prompt_BS = None
    if isinstance(marks, torch.Tensor):
        prompt_BS = fit_marks("prompt", marks, visual, longer=call.generating)
        if bool((visual.any(1) & ~prompt_BS.any(1)).any()):
            raise PrunekitError("prompt hides whole samples: nothing of them could say which visual tokens matter")
    elif marks not in (None, "all"):
        raise PrunekitError(f"prompt must be a bool mask [B, S] or 'all', not {marks!r}")
    if labels is not None:
        if labels.shape != visual.shape:
            raise PrunekitError(f"labels have shape {tuple(labels.shape)}, the prompt {tuple(visual.shape)}")
        answered_BS = (labels.to(visual.device) != IGNORE) & real_tokens(attention_mask, visual) & ~visual
        prompt_BS = answered_BS.cumsum(1) == 0 if prompt_BS is None else prompt_BS & ~answered_BS
    if call.generating and call.prompt_length is not None and size > call.prompt_length:
        before_BS = (torch.arange(size, device=visual.device) < call.prompt_length).expand_as(visual)
        prompt_BS = before_BS if prompt_BS is None else prompt_BS & before_BS
    return PromptEnd(prompt_BS, call.generating or marks is not None or labels is not None)


def check_whole(caller: Caller, size: int) -> None:
    """Raise for a prefill of ``size`` tokens that is only a part of the prompt of ``generate``."""
    whole = caller.call.prompt_length
    if caller.call.generating and whole is not None and size < whole:
        raise PrunekitError(
            f"a prompt in pieces ({size} of {whole} tokens) cannot be pruned, its later words would not be heard: "
            "leave out prefill_chunk_size"
        )


def fit_marks(name: str, marks: torch.Tensor, tokens: torch.Tensor, longer: bool) -> torch.Tensor:
    """Marks [B, S] of the caller for a batch of ``tokens`` [B', S']: repeated for beams, and continued with False where
    the sequence may be ``longer`` than what was marked. Raises for any other shape, and for another dtype."""
    if not isinstance(marks, torch.Tensor) or marks.dtype != torch.bool or marks.ndim != 2:
        what = f"{marks.dtype} {tuple(marks.shape)}" if isinstance(marks, torch.Tensor) else type(marks).__name__
        raise PrunekitError(f"{name} must be a bool mask [B, S], not {what}")
    (batch, size), (rows, length) = tokens.shape[:2], marks.shape
    repeats, rest = divmod(batch, rows) if rows else (0, 1)
    if rest or not repeats or not (length == size or (longer and length < size)):
        raise PrunekitError(f"{name} has shape {(rows, length)}, the batch {(batch, size)}")
    marks = marks.to(tokens.device).repeat_interleave(repeats, 0)
    return torch.nn.functional.pad(marks, (0, size - length))
