"""What may go wrong with a batch without ending the run: memory that is short, and examples that cannot be used."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from prunekit.data.example import Example
from prunekit.errors import RowError

T = TypeVar("T")

_ALLOCATION = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "cublas_status_alloc_failed",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _ALLOCATION)


@dataclass
class BatchLimit:
    """How many examples go through the model at a time; halved when memory does not hold them, and stays so."""

    size: int


def survive(
    batches: Iterable[Sequence[Example]], answer: Callable[[Sequence[Example]], list[T]], limit: BatchLimit
) -> Iterator[tuple[Example, T | RowError]]:
    """``answer(batch)``, one result an example, for all batches.

    A batch that memory does not hold is tried again in halves, and later ones are no larger. One with an example that
    cannot be used (RowError) is tried again in halves until that example stands alone; its result is the error, as is
    that of an example too large for memory by itself.
    """
    for batch in batches:
        todo, before = [batch], limit.size
        while todo:
            part = todo.pop()
            if len(part) > limit.size:
                todo += reversed([part[at : at + limit.size] for at in range(0, len(part), limit.size)])
                continue
            found = _attempt(answer, part)
            if not isinstance(found, RowError):
                yield from zip(part, found, strict=True)
            elif len(part) == 1:
                if isinstance(found, _NoMemory):  # it was this example, not how many there were
                    limit.size = before
                yield part[0], found
            else:
                half = (len(part) + 1) // 2
                if isinstance(found, _NoMemory):
                    limit.size = half
                    warnings.warn(
                        f"out of memory with {len(part)} examples at a time: going on with {half}", stacklevel=2
                    )
                todo += [part[half:], part[:half]]


class _NoMemory(RowError):
    """An example, or a batch, that memory does not hold."""


def _attempt(answer: Callable[[Sequence[Example]], list[T]], batch: Sequence[Example]) -> list[T] | RowError:
    try:
        return answer(batch)
    except RowError as error:
        return error.with_traceback(None)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    # Out here the failed pass's tensors, which the error's frames held, can be let go of.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _NoMemory(f"example '{batch[0].id}' does not fit in memory by itself: {reason}")
