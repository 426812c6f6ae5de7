"""Hooks once they are on: run outside of autocast and of compiled graphs, and absent from copies of the model.

A copy of a pruned model (``copy.deepcopy``, ``pickle``, ``torch.save``) is a plain model: hooks belong to one session
with its threads and its trace. Python asks a module's ``__getstate__`` for what to copy, and every module with hooks of
a session gets one that leaves them out, for as long as they are on.
"""

from __future__ import annotations

import functools
import types
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

BEFORE = "_forward_before_pruning"
"""Where a module keeps a ``forward`` of its own while a session's hooks are on it."""


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a session as it stands on a model: outside of autocast, and marked as no part of the model."""

    # A graph of torch.compile that took in a session's state would go on with it when another session is on. The
    # switch costs some microseconds, too many for each layer of each decode step, so it is used under a compiler alone.
    outside: Callable[..., Any] = torch.compiler.disable(lambda *args, **kwargs: guarded(*args, **kwargs))

    @functools.wraps(function)
    def guarded(*args: object, **kwargs: object) -> Any:
        if torch.compiler.is_compiling():
            return outside(*args, **kwargs)
        if not autocasts():
            return function(*args, **kwargs)
        with own_precision():
            return function(*args, **kwargs)

    guarded.of_session = True  # type: ignore[attr-defined]
    return guarded


def _is_own(value: object) -> bool:
    return getattr(value, "of_session", False) is True


class Mounted:
    """Marks a module that carries a session's hooks, for as long as they are on; a handle like those of hooks.

    Copies leave the session out, and compiled graphs of the module are made anew: torch.compile does not look whether
    hooks have come or gone since, but whether ``forward`` is still the same.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, own_entries = module, vars(module)
        hooks = tuple(len(getattr(module, name)) for name in HOOKS)
        self._before = own_entries.get("forward")  # accelerate puts one there
        self._forward = types.MethodType(forward_behind(type(module), hooks, self._before), module)
        own_entries["forward"] = self._forward
        own_entries[BEFORE] = self._before
        own_entries["__getstate__"] = functools.partial(plain_state, module)

    def remove(self) -> None:
        """Leave the module as it was."""
        own_entries = vars(self._module)
        own_entries.pop("__getstate__", None)
        own_entries.pop(BEFORE, None)
        if own_entries.get("forward") == self._forward:  # nobody has put another around it
            del own_entries["forward"]
            if self._before is not None:
                own_entries["forward"] = self._before


def forward_behind(
    kind: type[nn.Module], hooks: tuple[int, ...], before: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The ``forward`` of a kind of module, or ``before`` where a module has one of its own, but another function for
    torch.compile, which tells them apart by their code: one for each number of hooks. Its signature, which ``generate``
    looks at, is the kind's own."""
    function = types.FunctionType(_code(kind, hooks), globals(), closure=(types.CellType(before),))  # type: ignore[arg-type]
    forward = functools.update_wrapper(function, kind.forward)
    forward.of_session = True  # type: ignore[attr-defined]
    return forward


@functools.cache
def _code(kind: type[nn.Module], hooks: tuple[int, ...]) -> types.CodeType:
    return _passing_on(None).__code__.replace(co_name=f"forward_behind_{'_and_'.join(map(str, hooks))}_hooks")


def _passing_on(before: Callable[..., Any] | None) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: object, **kwargs: object) -> Any:
        return type(self).forward(self, *args, **kwargs) if before is None else before(*args, **kwargs)

    return forward


def plain_state(module: nn.Module) -> dict[str, object]:
    """What a module holds, less what a session put on it."""
    left_out = (BEFORE, "__getstate__")
    state = {name: value for name, value in vars(module).items() if name not in left_out and not _is_own(value)}
    if (before := vars(module).get(BEFORE)) is not None and "forward" not in state:
        state["forward"] = before
    for name in HOOKS:
        state[name] = type(state[name])((key, hook) for key, hook in state[name].items() if not _is_own(hook))
    for name, hooks in FLAGS.items():
        state[name] = type(state[name])((key, flag) for key, flag in state[name].items() if key in state[hooks])
    return state


def guard(handles: Iterable[Any]) -> None:
    """Make the hooks of ``handles`` a session's ``own``."""
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        hooks[handle.id] = own(hooks[handle.id])


def mark(model: nn.Module) -> list[Mounted]:
    """Mark the modules of a model that carry a session's hooks, once all of them are on."""
    return [Mounted(module) for module in model.modules() if _carries(module)]


def _carries(module: nn.Module) -> bool:
    """Whether a session's hooks, or a method of its own, are on a module."""
    hooks = (hook for name in HOOKS for hook in getattr(module, name).values())
    return any(map(_is_own, hooks)) or any(map(_is_own, vars(module).values()))


class NotCopied:
    """What holds hooks of a model cannot be copied along with it, nor be pickled."""

    def __reduce_ex__(self, protocol: object) -> Any:
        raise PrunekitError("a pruner that is on a model cannot be copied: copy the Pruner, and apply that one")
