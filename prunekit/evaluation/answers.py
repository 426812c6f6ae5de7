"""Answers of a model, dense or pruned, with what stayed; kept on disk so that nothing finished is done twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from prunekit.data.example import Example
from prunekit.digests import digest
from prunekit.errors import RowError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import BatchLimit, survive
from prunekit.evaluation.other import for_batch
from prunekit.evaluation.regions import regions_for
from prunekit.pruning.pruner import Pruner
from prunekit.views.trace import Trace


@dataclass(frozen=True)
class Answer:
    """One prediction.

    Attributes:
        text: the decoded answer.
        prompt_tokens: real tokens of the prompt.
        kept: indices of the visual tokens that stayed after the last cut, in sequence order (None: dense run).
        tokens: real tokens that each decoder layer processed (None: dense run).
        vision: tokens of the image that entered each block of the vision encoder (None: nothing goes inside it).
    """

    text: str
    prompt_tokens: int
    kept: list[int] | None = None
    tokens: list[int] | None = None
    vision: list[int] | None = None


def answer_all(
    batcher: Batcher,
    examples: Sequence[Example],
    pruner: Pruner | None,
    *,
    limit: BatchLimit,
    max_new_tokens: int,
    progress: Callable[[int], Any],
) -> Iterator[tuple[Example, Answer | RowError]]:
    """Greedy answers, batch by batch in an order of its own; ``progress`` is told how many more are done.

    An example that cannot be used has its error for an answer; a batch too large for memory lowers the ``limit``.
    """

    def answer(batch: Sequence[Example]) -> list[Answer]:
        return _answer_batch(batcher, batch, pruner, max_new_tokens)

    for example, answer_or_error in survive(batcher.batches(examples, limit.size), answer, limit):
        progress(1)
        yield example, answer_or_error


def _answer_batch(
    batcher: Batcher, batch: Sequence[Example], pruner: Pruner | None, max_new_tokens: int
) -> list[Answer]:
    inputs = batcher.inputs(batch, pruner)
    lengths = inputs["attention_mask"].sum(1).tolist()
    acting = None if pruner is None else for_batch(pruner, batcher, batch)
    block: Any = nullcontext() if acting is None else acting(batcher.loaded.model, regions_for(acting, batch))
    with torch.inference_mode(), block as trace:
        tokens = batcher.loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    texts = batcher.loaded.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [_answer(text.strip(), int(lengths[row]), trace, row) for row, text in enumerate(texts)]


def _answer(text: str, length: int, trace: Trace | None, row: int) -> Answer:
    if trace is None:
        return Answer(text, length)
    kept = trace.cuts[-1].kept[row].nonzero()[:, 0].tolist()
    inside, images = trace.cuts[0].site == "vision", trace.vision_tokens.shape[1]
    # Examples have one image each; where a model makes several of it, none stands for the row.
    vision = trace.vision_tokens[:, row].tolist() if inside and images == len(trace.cuts[0].kept) else None
    return Answer(text, length, kept, trace.tokens_per_layer[:, row].tolist(), vision)


def cache_folder() -> Path:
    """Where dense answers are kept between runs: ``PRUNEKIT_CACHE``, or ``~/.cache/prunekit``."""
    return Path(os.environ.get("PRUNEKIT_CACHE") or Path.home() / ".cache" / "prunekit")


class DenseCache:
    """Dense answers of one model, by example: a file of JSON lines named after the content of what produced them."""

    def __init__(self, model_digest: str, max_new_tokens: int) -> None:
        key = digest(f"3 {model_digest} {max_new_tokens}", 24)
        self.path = cache_folder() / "dense" / f"{key}.jsonl"
        self._answers: dict[str, str] = {}
        self._end = 0  # of what has been read
        self._read()

    def _read(self) -> None:
        """Take in the lines that the file has gained."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # another process is writing it
                self._end += len(line)
                with suppress(ValueError, TypeError):  # a line cut short by an interruption counts as absent
                    example, answer = json.loads(line)
                    self._answers[example] = answer

    @contextmanager
    def computing(self, examples: Sequence[Example]) -> Iterator[None]:
        """While these examples' answers are computed: of several processes that want the same ones the first computes,
        the others wait and then find them. A process that dies lets go of them; other examples wait for nobody."""
        names = digest("\n".join(example.id for example in examples))
        lock = FileLock(self.path.with_suffix(f".{names}.lock"))
        with suppress(OSError, NotImplementedError):  # where nothing can be locked, each computes for itself
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            self._read()
            yield
        finally:
            lock.release()
            with suppress(OSError):  # who waits for it has it open, and reads what stands there now
                Path(lock.lock_file).unlink()

    def get(self, example: Example) -> str | None:
        """The kept answer, None if there is none. Raises RowError for an example that cannot be used."""
        return self._answers.get(example.digest())

    def add(self, example: Example, answer: str) -> None:
        """Keep an answer at once; a folder that cannot be written is no error."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps([example.digest(), answer]) + "\n")
