"""The loop of an evaluation: window by window, dense answers (or those kept from before), then pruned ones, as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunekit import ranks
from prunekit.data.example import Example, Prediction
from prunekit.digests import id_number
from prunekit.errors import PrunekitError, RowError
from prunekit.evaluation.answers import Answer, DenseCache, answer_all
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import BatchLimit
from prunekit.evaluation.regions import regions_for
from prunekit.evaluation.windows import Walk
from prunekit.pruning.pruner import Pruner
from prunekit.records import rows

Score = Callable[[str, Example], float]
"""What a prediction is worth, in [0, 1]."""


class Bars:
    """Progress of the dense and the pruned side: a bar appears when its side has something to compute, and ends when
    that is all done. Only the first of several processes shows any."""

    def __init__(self, total: int | None) -> None:
        self._total, self._done = total, Counter[str]()
        self._bars: dict[str, tqdm] = {}

    def show(self, side: str) -> None:
        """Show a side's bar, from where the side stands."""
        if side not in self._bars:
            self._bars[side] = tqdm(
                total=self._total,
                initial=self._done[side],
                desc=f"{side:6}",
                unit="ex",
                dynamic_ncols=True,
                disable=not ranks.is_first(),
            )

    def advance(self, side: str, count: int) -> None:
        """So many examples more are done."""
        self._done[side] += count
        if (bar := self._bars.get(side)) is not None:
            bar.update(count)
            if self._done[side] == self._total:
                bar.close()

    def close(self) -> None:
        """End all bars."""
        for bar in self._bars.values():
            bar.close()


@dataclass
class Loop:
    """One pass of this process over its share of the data.

    Attributes:
        run_name: what the rows bear as the name of their run.
        done: ids whose rows stand, by ``id_number``.
        limits: how many examples go through the dense and the pruned model at a time.
        head: usable examples of the first window that has any, for what is measured once.
    """

    batcher: Batcher
    pruner: Pruner
    folder: Path
    score: Score
    max_new_tokens: int
    limits: dict[str, BatchLimit]
    run_name: str
    done: set[int] = field(default_factory=set)
    head: list[Example] = field(default_factory=list)

    def run(self, walk: Walk, total: int | None, data: str) -> None:
        """Append a row for every example of the walk that has none."""
        cache = DenseCache(self.batcher.loaded.digest, self.max_new_tokens)
        window: list[Example] = []
        faults: dict[str, RowError] = {}
        with ExitStack() as stack:
            self._file = stack.enter_context(rows.own_file(self.folder).open("ab"))
            self._bars = stack.enter_context(closing(Bars(total)))
            for window in walk.windows():
                todo = [e for e in window if id_number(e.id) not in self.done]
                for side in self.limits:
                    self._bars.advance(side, len(window) - len(todo))
                faults = self._window(todo, cache)
                self.head = self.head or [e for e in window if e.id not in faults]
                if not self.head and len(window) == walk.size:
                    break  # not one of so many: the rest will be no better
                if not walk.whole:
                    self.batcher.forget()
        if not self.head and (ranks.is_first() or len(window) == walk.size):
            why = next(iter(faults.values()))
            raise PrunekitError(f"data '{data}': none of the first {len(walk.places)} examples is usable: {why}")

    def _window(self, examples: Sequence[Example], cache: DenseCache) -> dict[str, RowError]:
        """Rows of a window; the examples among them that cannot be used, with the reason."""
        faults = {e.id: RowError(e.error) for e in examples if e.error}
        usable = [e for e in examples if not e.error]
        self._bars.advance("dense", len(faults))
        for example in usable if self.pruner.scorer.uses_regions else ():
            with suppress(RowError):  # what the data does not know is said before any work is done
                regions_for(self.pruner, [example])
        dense = self._dense(usable, cache, faults)
        for example, found in self._answers("pruned", [e for e in usable if e.id in dense]):
            if isinstance(found, RowError):
                faults[example.id] = found
            else:
                rows.append(self._file, self._row(example, found, dense[example.id]))
        for example in examples:
            if example.id in faults:
                rows.append(self._file, {**_asked(example), "run": self.run_name, "error": str(faults[example.id])})
        self._bars.advance("pruned", len(examples) - len(dense))
        return faults

    def _dense(self, examples: Sequence[Example], cache: DenseCache, faults: dict[str, RowError]) -> dict[str, str]:
        """Dense answers by id: kept ones, and the others made now."""
        found, missing = _kept(examples, cache, faults)
        self._bars.advance("dense", len(examples) - len(missing))
        if not missing:
            return found
        with cache.computing(missing):
            meanwhile, missing = _kept(missing, cache, faults)
            found |= meanwhile
            self._bars.advance("dense", len(meanwhile))
            for example, answer in self._answers("dense", missing):
                if isinstance(answer, RowError):
                    faults[example.id] = answer
                else:
                    cache.add(example, answer.text)
                    found[example.id] = answer.text
        return found

    def _answers(self, side: str, examples: Sequence[Example]) -> Any:
        if examples:
            self._bars.show(side)
        return answer_all(
            self.batcher,
            examples,
            self.pruner if side == "pruned" else None,
            limit=self.limits[side],
            max_new_tokens=self.max_new_tokens,
            progress=lambda count: self._bars.advance(side, count),
        )

    def _row(self, example: Example, answer: Answer, dense: str) -> Prediction:
        assert answer.kept is not None and answer.tokens is not None  # of a pruned run
        return {
            **_asked(example),
            "prediction": answer.text,
            "dense_prediction": dense,
            "correct": _plain(self.score(answer.text, example)),
            "dense_correct": _plain(self.score(dense, example)),
            "kept": answer.kept,
            "prompt_tokens": answer.prompt_tokens,
            "tokens_per_layer": answer.tokens,
            **({} if answer.vision is None else {"vision_tokens": answer.vision}),
            "run": self.run_name,
        }


def _kept(
    examples: Sequence[Example], cache: DenseCache, faults: dict[str, RowError]
) -> tuple[dict[str, str], list[Example]]:
    """Kept answers by id, and the examples without one; those that cannot be used join the ``faults``."""
    found: dict[str, str] = {}
    missing = []
    for example in examples:
        try:
            text = cache.get(example)
        except RowError as error:
            faults[example.id] = error
            continue
        if text is None:
            missing.append(example)
        else:
            found[example.id] = text
    return found, missing


def _asked(example: Example) -> Prediction:
    return {
        "id": example.id,
        "image_id": example.image_id,
        "task": example.task,
        "question": example.question,
        "answers": list(example.answers),
    }


def _plain(value: float) -> float | bool:
    """Right or wrong as such, what lies between as it is."""
    return bool(value) if value in (0, 1) else value
