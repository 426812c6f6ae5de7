"""``data=``: from its options to examples, read one after another and never all held."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Required, TypedDict, cast

from prunekit.data.benchmarks import BENCHMARKS, PART, REFUSED, Benchmark, Fields
from prunekit.data.boxes import STYLES
from prunekit.data.example import Example
from prunekit.data.hub import open_hub
from prunekit.data.mini import ALL_SPLITS, load
from prunekit.data.rows import RowReader, parse_prompt
from prunekit.data.tables import Row, Table, chained, open_jsonl, open_parquet
from prunekit.data.videos import Sampling
from prunekit.digests import digest, id_number
from prunekit.errors import PrunekitError, RowError, check_choice
from prunekit.files import read_yaml
from prunekit.metrics import metric
from prunekit.registry import source_folder

FILES = ("jsonl", "parquet", "hf")
NAMES = ("mini", *FILES, *BENCHMARKS, *REFUSED)
COLUMNS = ("id", "image", "video", "video_fps", "question", "answers", "choices", "task", "history", "context")
NEEDED = ("question", "answers")
ALIASES = {"image": "images", "answers": "answer"}
"""What a column of another number may be called."""


class DataSettings(TypedDict, total=False):
    """The options of ``conf/data``; which of them a data set has, its own file says.

    Attributes:
        config: the hub's configuration (subset); ``images_config`` is that of the images, where they stand apart.
        images, videos: where relative paths of images and videos start.
        frames, fps: how videos are sampled.
        columns: which column says what.
        open_prompt: of rows without choices, where it is another.
        style: a name of ``STYLES``: how the model writes boxes, and by which of the ``styles`` it is asked.
        styles: of some styles, or of the family that a style's name begins with, options in place of the data's own.
    """

    name: Required[str]
    path: str
    config: str | None
    images_config: str
    split: str
    revision: str | None
    streaming: bool
    images: str | None
    videos: str | None
    frames: int | None
    fps: float | None
    limit: int | None
    max_new_tokens: int
    max_pixels: int
    metric: str
    prompt: str | None
    open_prompt: str
    style: str
    styles: Mapping[str, Mapping[str, str]]
    columns: Mapping[str, str | None] | None


class Examples(list[Example]):
    """Examples that are all there, with the name of their ``metric``."""

    def __init__(self, examples: Iterable[Example], metric: str = "exact") -> None:
        super().__init__(examples)
        self.metric = metric


@dataclass
class Source:
    """Examples that are made as they are asked for; each pass reads the rows anew.

    A row that cannot be used comes as an example with its ``error`` set. ``len`` is not known in general;
    ``operator.length_hint`` says what is.

    Attributes:
        name: of the data and its split, as metrics name them.
        metric: a name of ``prunekit.metrics.METRICS``.
        fields: from a row to what ``RowReader`` reads, None for a row that does not count; a list for a row with
            several questions.
        limit: the most examples that come.
        unique: whether rows bring ids of their own, which then must differ.
        digest: of the options that say what is asked; another one is another run.
    """

    name: str
    metric: str
    table: Table
    reader: RowReader
    fields: Callable[[Row], Fields | list[Fields] | None]
    limit: int | None = None
    unique: bool = False
    digest: str = ""

    def __iter__(self) -> Iterator[Example]:
        seen: set[int] = set()
        count = 0
        for number, (where, row) in enumerate(self.table.rows(), 1):
            if self.limit is not None and count >= self.limit:
                return
            parsed = self._fields(row)
            if parsed is None:
                continue
            asked: Sequence[Fields | str]
            if isinstance(parsed, list):
                asked = [{"id": f"{number}-{n}", **fields} for n, fields in enumerate(parsed, 1)]
            else:
                asked = [parsed]
            for entries in asked[: None if self.limit is None else self.limit - count]:
                count += 1
                example = self.reader.example(where, number, entries)
                if self.unique and not example.error:
                    example = _once(example, seen, where, number)
                yield example
        if not count:
            raise PrunekitError(f"{self.table.name}: no rows")

    def __length_hint__(self) -> int:
        """How many examples there are at most; NotImplemented if nobody knows."""
        known = [n for n in (self.limit, self.table.size) if n is not None]
        return min(known) if self.table.size is not None else NotImplemented

    def _fields(self, row: Row | str) -> Fields | list[Fields] | str | None:
        """A row's fields, or why it has none."""
        if isinstance(row, str):
            return row
        try:
            return self.fields(row)
        except KeyError as error:
            return f"no '{error.args[0]}'"
        except RowError as error:
            return str(error)


def _once(example: Example, seen: set[int], where: str, number: int) -> Example:
    """The example, or an error if an earlier one has its id: predictions are kept by id."""
    if (key := id_number(example.id)) in seen:
        return replace(example, id=f"row {number}", error=f"{where}: id '{example.id}' is taken by an earlier row")
    seen.add(key)
    return example


def open_source(data: DataSettings) -> Source | Examples:
    """The data called ``data["name"]``; options that are not given are those of ``conf/data/NAME.yaml``.

    Raises:
        PrunekitError: for options that do not fit, a file that is not there or lacks a column, an empty split.
    """
    name = data["name"]
    check_choice("data.name", name, NAMES)
    if name in REFUSED:
        raise PrunekitError(f"data '{name}': {REFUSED[name]}")
    for option in data:
        check_choice(f"option of data '{name}':", option, defaults(name))
    data = {**defaults(name), **data}
    if name == "mini":
        check_choice("data.split", data["split"], ALL_SPLITS)
        return Examples(load(data["split"], data["limit"]))
    metric(data["metric"])
    data = styled(data)
    known = BENCHMARKS.get(name)
    table = _table(data, known.columns if known else None)
    folders = {"folder": _folder(data, table, "images"), "videos": _folder(data, table, "videos")}
    sampling = Sampling(data.get("frames"), data.get("fps"))
    task = name if known else "all"
    prompts = parse_prompt(data["prompt"]), parse_prompt(data.get("open_prompt"), "data.open_prompt")
    reader = RowReader(
        task,
        prompts[0],
        max_pixels=data["max_pixels"],
        sampling=sampling,
        open_prompt=prompts[1],
        style=data.get("style", "plain"),
        **folders,
    )
    source = Source(source_name(data), data["metric"], table, reader, dict, data["limit"], digest=_digest(data))
    return _of_benchmark(source, known, data) if known else _of_columns(source, data["columns"] or {})


def styled(data: DataSettings) -> DataSettings:
    """The options with those of its style in their place; what differs from the data's own file was asked for, and
    stays. "auto", which only a model can tell, is "plain"."""
    if "style" not in data:
        return data
    style = "plain" if data["style"] == "auto" else data["style"]
    check_choice("data.style", style, STYLES)
    styles, own = data.get("styles", {}), defaults(data["name"])
    chosen = styles.get(style) or styles.get(re.split(r"[\d_]", style)[0]) or {}
    kept = {name: value for name, value in chosen.items() if data.get(name) == own.get(name)}
    return cast(DataSettings, {**data, **kept, "style": style})


@functools.cache
def defaults(name: str) -> DataSettings:
    """The options of ``conf/data/NAME.yaml``, as the command line has them."""
    return cast(DataSettings, read_yaml(source_folder("conf") / "data" / f"{name}.yaml"))


def gather(source: Source | Examples) -> Examples:
    """All usable examples of a source at once, for what compares them with one another.

    Raises:
        PrunekitError: if none is; it says what is wrong with the first.
    """
    if isinstance(source, Examples):
        return source
    examples = list(source)
    usable = [example for example in examples if not example.error]
    if not usable:
        raise PrunekitError(f"data '{source.name}': no usable row; {examples[0].error}")
    return Examples(usable, source.metric)


def _digest(data: DataSettings) -> str:
    # Of these a run keeps its own account, or none is needed.
    free = ("limit", "streaming", "max_new_tokens", "metric", "styles")
    asked = sorted((key, value) for key, value in data.items() if key not in free)
    return digest(repr(asked))


def source_name(data: DataSettings) -> str:
    """The data and its split: "mini/test", "gqa/testdev", "jsonl/questions.jsonl"."""
    if data["name"] == "mini" or data["name"] in BENCHMARKS:
        return f"{data['name']}/{data['split']}"
    return "/".join(str(part) for part in _named(data) if part)


def _named(data: DataSettings) -> tuple[str | None, ...]:
    """What tells one table from another."""
    return data["name"], data.get("path"), data.get("config"), data.get("split")


def same_rows(one: DataSettings, other: DataSettings) -> bool:
    """Whether two data name the same table: a file has no splits, whatever ``split`` says."""

    def table(data: DataSettings) -> tuple[str | None, ...]:
        path = str(data.get("path") or "")
        if path.endswith((".jsonl", ".parquet")) or data["name"] in ("jsonl", "parquet"):
            return ("file", str(Path(path).resolve()))
        return _named(data)

    return table(one) == table(other)


def _table(data: DataSettings, columns: tuple[str, ...] | None) -> Table:
    """The rows: of a file by its ending, else of a data set."""
    path: object = data["path"]
    if not isinstance(path, str) or path in ("", "???"):
        raise PrunekitError(f"data.path must name a file, a folder or a data set of the hub, not {path!r}")
    if data["name"] == "jsonl" or path.endswith(".jsonl"):
        return open_jsonl(path)
    if data["name"] == "parquet" or path.endswith(".parquet"):
        return open_parquet(path, columns)
    options = (data["split"], data["revision"], data["streaming"])
    parts = BENCHMARKS[data["name"]].parts if data["name"] in BENCHMARKS and data["config"] is None else ()
    if not parts:
        return open_hub(path, data["config"], *options)
    return chained(path, {part: functools.partial(open_hub, path, part, *options) for part in parts}, PART)


def _folder(data: DataSettings, table: Table, medium: str) -> Path:
    folder = cast(Mapping[str, str | None], data).get(medium)
    return table.folder if folder is None else Path(folder)


def _of_benchmark(source: Source, known: Benchmark, data: DataSettings) -> Source:
    """The source with the benchmark's own fields, and images of another table where they stand there."""
    join = known.join
    if data["config"] in known.parts:
        source = replace(source, fields=lambda row: known.fields({PART: data["config"], **row}))
    else:
        source = replace(source, fields=known.fields)
    source.table.need([name for name in known.needs if name != PART or data["config"] not in known.parts])
    if known.several:  # how many questions the rows ask is not known
        source = replace(source, table=replace(source.table, size=None))
    if known.video:
        return source
    if data["path"].endswith((".parquet", ".jsonl")):
        source.table.need((known.image,))
    if join is None or "image" in source.table.columns:
        return source
    options = (data["split"], data["revision"], data["streaming"])
    images = open_hub(data["path"], data["images_config"], *options)
    images.need((join.id, join.image))

    @functools.cache  # at the first row; a benchmark asks many questions about few images
    def by_id() -> dict[Any, Any]:
        return {r[join.id]: r[join.image] for _, r in images.rows() if not isinstance(r, str)}

    def joined(row: Row) -> Fields | list[Fields] | None:
        return known.fields({**row, "image": by_id().get(row[join.key])})

    return replace(source, fields=joined)


def _of_columns(source: Source, columns: Mapping[str, str | None]) -> Source:
    """The source with its columns under the names that ``data.columns`` gives them."""
    names: dict[str, str] = {}
    for entry in COLUMNS:
        column = columns.get(entry)
        alias = ALIASES.get(entry, entry)
        usual = alias if entry not in source.table.columns and alias in source.table.columns else entry
        names[entry] = column or usual
    videos = names["video"] in source.table.columns
    needed = (*NEEDED,) if videos else ("image", *NEEDED)
    source.table.need([names[e] for e in COLUMNS if e in needed or columns.get(e)])
    sampling = source.reader.sampling
    if not videos and (sampling.frames or sampling.fps):
        option = "frames" if sampling.frames else "fps"
        raise PrunekitError(
            f"{source.table.name}: data.{option} samples videos, and there is no column '{names['video']}'"
        )

    def fields(row: Row) -> dict[str, Any]:
        missing = [names[entry] for entry in needed if names[entry] not in row]
        if missing:
            raise RowError(f"no '{missing[0]}'")
        return {entry: row[name] for entry, name in names.items() if name in row}

    by_id = source.table.size is None or names["id"] in source.table.columns  # of JSON any row may bring an id
    return replace(source, fields=fields, unique=by_id)
