"""Hooks once they are on: run outside of autocast and of compiled graphs, and absent from copies of the model.

A copy of a pruned model (``copy.deepcopy``, ``pickle``, ``torch.save``) is a plain model: hooks belong to one session
with its threads and its trace. Python asks a module's ``__getstate__`` for what to copy, and every module with hooks of
a session gets one that leaves them out, for as long as they are on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from prunekit.engine.precision import autocasts, own_precision
from prunekit.errors import PrunekitError

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
FLAGS = {
    "_forward_pre_hooks_with_kwargs": "_forward_pre_hooks",
    "_forward_hooks_with_kwargs": "_forward_hooks",
    "_forward_hooks_always_called": "_forward_hooks",
}
"""Where a module notes how its hooks are called, beside the hooks."""


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a session as it stands on a model: outside of autocast, and marked as no part of the model."""

    # A graph of torch.compile that took in a session's state would go on with it when another session is on.
    @torch.compiler.disable
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not autocasts():
            return function(*args, **kwargs)
        with own_precision():
            return function(*args, **kwargs)

    guarded.of_session = True  # type: ignore[attr-defined]
    return guarded


def _is_own(value: Any) -> bool:
    return getattr(value, "of_session", False) is True


class PlainCopies:
    """Makes copies of a module leave out what a session put on it; a handle like those of hooks."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        module.__dict__["__getstate__"] = functools.partial(plain_state, module)

    def remove(self) -> None:
        """Let the module be copied as it is again."""
        self._module.__dict__.pop("__getstate__", None)


def plain_state(module: nn.Module) -> dict[str, Any]:
    """What a module holds, less what a session put on it."""
    state = {name: value for name, value in vars(module).items() if name != "__getstate__" and not _is_own(value)}
    for name in HOOKS:
        state[name] = type(state[name])((key, hook) for key, hook in state[name].items() if not _is_own(hook))
    for name, hooks in FLAGS.items():
        state[name] = type(state[name])((key, flag) for key, flag in state[name].items() if key in state[hooks])
    return state


def mount(handles: Iterable[Any], roots: Iterable[nn.Module | None]) -> list[PlainCopies]:
    """Make the hooks of ``handles`` a session's ``own``, on modules at or below ``roots``: handles of what keeps them
    out of copies."""
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        hooks[handle.id] = own(hooks[handle.id])
    modules = dict.fromkeys(module for root in roots if root is not None for module in root.modules())
    return [PlainCopies(module) for module in modules if _carries(module)]


def _carries(module: nn.Module) -> bool:
    """Whether a session's hooks, or a method of its own, are on a module."""
    hooks = (hook for name in HOOKS for hook in getattr(module, name).values())
    return any(map(_is_own, hooks)) or any(map(_is_own, vars(module).values()))


class NotCopied:
    """What holds hooks of a model cannot be copied along with it, nor be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PrunekitError("a pruner that is on a model cannot be copied: copy the Pruner, and apply that one")
