"""One walk over the data, in windows: each process takes its share, and memory holds no more than a window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from prunekit import ranks
from prunekit.data.example import Example
from prunekit.digests import id_number

WINDOW = 1024
"""Examples of a list that are sorted by length together, and whose dense answers come first."""
STREAMED = 256
"""The same of a stream, whose examples may hold the bytes of their images."""


class Walk:
    """The examples in order, each with its place; those of one image that follow each other stay together.

    Attributes:
        places: the place of each example by ``id_number`` of its id, those of all processes included.
        whole: whether the data is a list, so that all of it may be held.
    """

    def __init__(self, examples: Iterable[Example], batch_size: int, window: int | None = None) -> None:
        self._examples = examples
        self.whole = isinstance(examples, Sequence)
        self.size = window or max(WINDOW if self.whole else STREAMED, 8 * batch_size)
        self.places: dict[int, int] = {}
        self._repeats: Counter[int] = Counter()

    def windows(self) -> Iterator[list[Example]]:
        """This process's examples, ``size`` at a time."""
        window: list[Example] = []
        run, latest = -1, None
        for place, given in enumerate(self._examples):
            example = self._named(given)
            self.places[id_number(example.id)] = place
            if example.image_id != latest:
                run, latest = run + 1, example.image_id
            if run % ranks.world() == ranks.rank():
                window.append(example)
            if len(window) == self.size:
                yield window
                window = []
        if window:
            yield window

    def _named(self, example: Example) -> Example:
        """The example; a second one under the same id is an error of its own, under a name of its own."""
        key = id_number(example.id)
        if key not in self.places:
            return example
        self._repeats[key] += 1
        name = f"{example.id} (again {self._repeats[key]})"
        return replace(example, id=name, error=f"the id '{example.id}' stands twice in the data")
