"""The explorer's computation: a question about a picture, answered dense and by each method. It knows no page."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from threading import RLock
from time import perf_counter
from typing import Any

import torch

from prunekit.app.query import Query, Upload
from prunekit.app.record import Record, Side, Word
from prunekit.bench.memory import kv_bytes
from prunekit.cost import layer_macs
from prunekit.cost.reading import mlp_width
from prunekit.data.example import Example
from prunekit.data.pictures import MAX_PIXELS, Picture
from prunekit.data.videos import UP_TO_FRAMES, Sampling, Video
from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.evaluation.batches import Batcher
from prunekit.evaluation.faults import out_of_memory
from prunekit.evaluation.kept import KeptCut, cuts_of, jpeg
from prunekit.evaluation.regions import regions_for
from prunekit.evaluation.sheets import Sheet, example_places, sheets_of
from prunekit.evaluation.timing import timed_prefill
from prunekit.families import make_family
from prunekit.loaded import LoadedModel
from prunekit.metrics import metric
from prunekit.pruning.budget import for_prompt
from prunekit.pruning.presets import method, methods
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.registry import KINDS, registry
from prunekit.views.layer import Regions

OWN = "as configured"
"""The pruner of the command line, among the methods to choose from."""

ROUNDS, LONG = 5, 8.0
"""Prefills that are timed for each side; none more once they took so many seconds."""

DENSE = "dense"

Tick = Callable[[str, float], Any]
"""Told what is done now and how much of the whole is behind it, 0..1; it raises to stop the work."""


class Stopped(Exception):
    """A user stopped the work."""


class Explorer:
    """A model with the pictures to choose from. It keeps nothing of a question; the lock lets one thread at a time use
    the model."""

    def __init__(
        self,
        loaded: LoadedModel,
        base: Pruner,
        examples: Iterable[Example],
        *,
        score: str = "exact",
        max_new_tokens: int = 8,
        max_pixels: int = MAX_PIXELS,
        sampling: Sampling = UP_TO_FRAMES,
    ) -> None:
        self.loaded, self.base = loaded, base
        self.examples = {example.id: example for example in examples if not example.error}
        self.score, self.max_new_tokens = metric(score).score, max_new_tokens
        self.max_pixels, self.sampling = max_pixels, sampling
        self.batcher, self.family = Batcher(loaded), make_family(loaded.model)
        self.batcher.shares_features = False  # each side encodes the picture itself: their times then compare
        self.sheets, self.lock = sheets_of(self.batcher), RLock()

    def names(self) -> list[str]:
        """The methods to choose from: the configured one, the user's own, all others, single scorers."""
        files = {name: str(path) for name, path in methods().items()}
        files |= {f"scorer={name}": _file(cls) for name, cls in registry.classes("scorer").items()}
        own = {str(path) for path in registry.user_files()}
        return [OWN, *sorted(files, key=lambda name: files[name] not in own)]

    def pruner(self, name: str, query: Query) -> Pruner:
        """The pruner of a name of ``names`` at the query's budget.

        Raises:
            PrunekitError: for an unknown name, and a budget that the method cannot meet.
        """
        if name == OWN:
            return self.base.replace(**query.share)
        if name.startswith("scorer="):
            return self.base.replace(scorer=name.removeprefix("scorer="), name=None, **query.share)
        if name not in methods():
            raise UnknownNameError("method", name, self.names())
        return method(name, **query.share)

    def known(self, name: str) -> Example:
        """The data's example of an id. Raises PrunekitError if it is not among those shown."""
        if name not in self.examples:
            raise PrunekitError(f"the data have no example '{name}' among those shown here")
        return self.examples[name]

    def shown(self, upload: Upload, question: str) -> Example:
        """A question about a user's own file, which is read when it is asked for."""
        content, name = upload.content(), upload.name
        if upload.video:
            video = Video(content, name, self.sampling, max_pixels=self.max_pixels)
            return Example(name, video.name, "upload", question, (), video=video)
        picture = Picture(content, name, self.max_pixels)
        return Example(name, picture.name, "upload", question, (), pictures=(picture,))

    def example(self, query: Query) -> Example:
        """What the query shows and asks. Answers and regions are known for the data's own questions alone.

        Raises:
            PrunekitError: for an example that the data do not have, and an upload that is broken.
        """
        if query.upload is not None:
            return self.shown(query.upload, query.question)
        known = self.known(str(query.example))
        for other in self.examples.values():
            if other.image_ids == known.image_ids and other.question.strip() == query.question:
                return other
        return replace(known, question=query.question, answers=(), regions=(), choices=())

    def explore(self, query: Query, tick: Tick = lambda text, done: None) -> Iterator[Record]:
        """The record of a query, again and again, with one side more each time. A method that fails is a side with an
        error.

        Raises:
            PrunekitError: for a picture that cannot be read, a name that there is not, and what memory does not hold.
        """
        example, names = self.example(query), query.names
        for name in query.names:
            if name not in self.names():
                raise UnknownNameError("method", name, self.names())
        tick("reading the picture", 0)
        with self.lock:
            record = self._blank(query, example)
            for number, name in enumerate((DENSE, *names)):

                def step(what: str, number: int = number, name: str = name) -> None:
                    tick(f"{name}: {what}", number / (len(names) + 1))

                record = replace(record, sides=(*record.sides, self._side(name, query, example, step)))
                yield record

    def _blank(self, query: Query, example: Example) -> Record:
        sheet = self.sheets(example)
        (width, height), one = example.image().size, sheet is None or int(sheet.panels.max(initial=0)) == 0
        regions = [(a / width, b / height, c / width, d / height) for a, b, c, d in example.regions] if one else []
        picture, boxes, panels = jpeg(example.image() if sheet is None else sheet.image), None, None
        if sheet is not None:
            boxes, panels = sheet.boxes, sheet.panels
        return Record(query, picture, boxes, panels, self._places(example, sheet), example.answers, tuple(regions))

    def _places(self, example: Example, sheet: Sheet | None) -> tuple[str, ...]:
        """Where each token stands, in words."""
        places = example_places(self.family, self.batcher.encoded([example]))
        if sheet is None or places is None:
            return ()
        columns = [getattr(places, name)[0].tolist() for name in ("medium", "frame", "row", "column", "thumbnail")]
        several, moving = len(set(columns[0])) > 1, bool(places.video.any())
        words = []
        for medium, frame, row, column, small in zip(*columns, strict=True):
            parts = [f"image {medium + 1}"] if several else []
            parts += [f"frame {frame + 1}"] if moving else []
            parts += ["thumbnail"] if small else []
            words.append(", ".join([*parts, f"row {row + 1}, column {column + 1}" if row >= 0 else "separator"]))
        return tuple(words)

    def _side(self, name: str, query: Query, example: Example, step: Callable[[str], None]) -> Side:
        about = "all visual tokens" if name == DENSE else ""
        try:
            if name == DENSE:
                return self._answered(Side(name, about), None, query, example, step)
            pruner = self.fitted(self.pruner(name, query), example)
            about = " · ".join(_parts(pruner))
            return self._answered(Side(name, about), pruner, query, example, step)
        except PrunekitError as error:
            if name == DENSE:
                raise
            return Side(name, about, error=_line(error))
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = f"{example.id}: model and question do not fit in memory: {_line(error)[:120]}"
        if torch.cuda.is_available():  # out here the failed pass's tensors, which the error's frames held, are gone
            torch.cuda.empty_cache()
        if name == DENSE:
            raise PrunekitError(reason)
        return Side(name, about, error=reason)

    def fitted(self, pruner: Pruner, example: Example) -> Pruner:
        """With a budget's layers chosen for this prompt."""
        if pruner.budget is None:
            return pruner
        inputs = self.batcher.encoded([example])
        visual = int(self.family.find_visual(inputs["input_ids"], dict(inputs)).sum())
        return pruner.replace(budget=for_prompt(pruner.budget, visual, inputs["input_ids"].shape[1] - visual))

    def _answered(
        self, side: Side, pruner: Pruner | None, query: Query, example: Example, step: Callable[[str], None]
    ) -> Side:
        model, inputs = self.loaded.model, self.batcher.inputs([example], pruner)
        length, regions = inputs["input_ids"].shape[1], None if pruner is None else regions_for(pruner, [example])

        def watch(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            step(f"token {ids.shape[1] - length} of at most {self.max_new_tokens}")
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        step("prefill")
        start = perf_counter()
        with torch.inference_mode(), _block(pruner, model, regions) as trace, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                stopping_criteria=[watch],
            )
        seconds, words = perf_counter() - start, self._words(output.sequences[0, length:], output.logits)
        cuts = () if trace is None or pruner is None else cuts_of(trace, pruner)
        layers = [length] * self.family.depth if trace is None else trace.tokens_per_layer[:, 0].tolist()
        own, dense, stored = self._timed(pruner, inputs, regions, step)
        answer = "".join(word.text for word in words).strip()
        width, mlp = self.family.text_config.hidden_size, mlp_width(self.family.text_config)
        return replace(
            side,
            answer=answer,
            words=words,
            right=self.score(answer, example) if example.answers else None,
            cuts=cuts,
            earlier=() if pruner is None or not query.before else self._earlier(pruner, query),
            tokens_per_layer=tuple(layers),
            flops=2 * float(layer_macs(torch.tensor(layers), width, mlp).sum()),
            kv_bytes=stored,
            prefill_seconds=median(own),
            dense_seconds=median(dense),
            prefill_ratio=median(a / b for a, b in zip(own, dense, strict=True)),
            answer_seconds=seconds,
        )

    def _timed(
        self, pruner: Pruner | None, inputs: Any, regions: Regions | None, step: Callable[[str], None]
    ) -> tuple[list[float], list[float], int]:
        """Seconds of several prefills, and of dense ones taken in turn with them; the bytes of the cache. Nothing
        has to warm up: ``generate`` has run."""
        model, stored = self.loaded.model, 0
        own: list[float] = []
        dense: list[float] = []
        while len(own) < ROUNDS and sum(own + dense) < LONG:
            step(f"time, round {len(own) + 1} of {ROUNDS}")
            if pruner is not None:
                dense.append(timed_prefill(model, inputs)[0])
            with _block(pruner, model, regions):
                seconds, cache = timed_prefill(model, inputs)
            own.append(seconds)
            stored = 0 if cache is None else kv_bytes(cache)
        return own, dense or own, stored

    def _earlier(self, pruner: Pruner, query: Query) -> tuple[KeptCut, ...]:
        """The cuts of the earlier question about the same picture; none where its data do not say what they need."""
        example = self.example(query.model_copy(update={"question": query.before}))
        if pruner.scorer.uses_regions and not example.regions:
            return ()
        pruner, inputs = self.fitted(pruner, example), self.batcher.inputs([example], pruner)
        with _block(pruner, self.loaded.model, regions_for(pruner, [example])) as trace:
            timed_prefill(self.loaded.model, inputs)
        return cuts_of(trace, pruner)

    def _words(self, ids: torch.Tensor, logits: tuple[torch.Tensor, ...]) -> tuple[Word, ...]:
        """The answer token by token; what a tokenizer writes as nothing (the end) is left out."""
        decode = self.loaded.processor.decode
        words, before = [], ""
        for place, (token, row) in enumerate(zip(ids.tolist(), logits, strict=False)):
            text = decode(ids[: place + 1], skip_special_tokens=True)
            if text != before:
                words.append(Word(text[len(before) :], float(row[0].float().softmax(-1)[token])))
            before = text
        return tuple(words)


def _block(pruner: Pruner | None, model: Any, regions: Regions | None) -> Any:
    return nullcontext() if pruner is None else pruner(model, regions)


def _parts(pruner: Pruner) -> list[str]:
    """Names of the scorer, fusion and schedule, and of what is not the default beside them."""
    names = {kind: component_name(component) for kind, component in pruner.components.items()}
    return [names[kind] for kind in KINDS if names[kind] not in ("topk", "drop")]


def _file(cls: type) -> str:
    return str(Path(getattr(sys.modules.get(cls.__module__), "__file__", "") or ""))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
