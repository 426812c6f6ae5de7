"""From a row to an example: each value is checked, and what does not fit is said of that row alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.boxes import STYLES, Box
from prunekit.data.example import Example
from prunekit.data.pictures import MAX_PIXELS, Picture
from prunekit.data.videos import UP_TO_FRAMES, Sampling, Video
from prunekit.errors import PrunekitError, RowError, check_choice
from prunekit.metrics.choice import LETTERS

FIELDS = (
    "id", "group", "image", "video", "video_fps", "question", "answers", "choices", "task", "history", "context", "box",
)  # fmt: skip
"""What a row may say: ``group`` marks rows that a metric looks at together, ``context`` stands in the prompt,
``video_fps`` is the rate of a video that is a list of frames, ``box`` (left, top, width, height in pixels) is the
answer in place of ``answers``."""

PLACEHOLDERS = ("question", "options", "bracketed_options", "context")
CHOICE_PROMPT = "{context}{question}\n{options}\nAnswer with the option's letter from the given choices directly."
PLAIN_PROMPT = "{context}{question}"


def parse_prompt(
    prompt: object, option: str = "data.prompt", placeholders: Sequence[str] = PLACEHOLDERS, like: str = ""
) -> str | None:
    """A prompt's text, its placeholders checked; ``\\n`` as typed on a command line is a line break. Errors name the
    ``option``, and show what one looks ``like``."""
    if prompt is None:
        return None
    if not isinstance(prompt, str):
        raise PrunekitError(f"{option} must be a text{like and f' like {like}'}, not {prompt!r}")
    for name in re.findall(r"\{(\w*)\}", prompt):
        check_choice(f"placeholder of {option}", name, placeholders)
    if "{question}" not in prompt:
        raise PrunekitError(f"{option} has no {{question}}: '{prompt}'")
    return prompt.replace("\\n", "\n")


@dataclass(frozen=True)
class RowReader:
    """Makes examples of rows whose entries are ``FIELDS``.

    Attributes:
        task: of rows that name none.
        prompt: text with ``{question}``, ``{options}`` ("A. cat", one a line), ``{bracketed_options}`` ("(A) cat") and
            ``{context}``; None: the question, and for a row with choices the options and the wish for a letter.
        open_prompt: of rows without choices; None: ``prompt``.
        style: how the model writes boxes (``prunekit.data.boxes.STYLES``).
        folder, videos: where relative paths of images and of videos start.
        sampling: the frames of a video that are shown.
    """

    task: str
    prompt: str | None = None
    folder: Path = Path()
    max_pixels: int = MAX_PIXELS
    videos: Path = Path()
    sampling: Sampling = UP_TO_FRAMES
    open_prompt: str | None = None
    style: str = "plain"

    def example(self, where: str, number: int, row: Mapping[str, object] | str) -> Example:
        """The example of row ``number``; one that cannot be used has its ``error`` set."""
        try:
            if isinstance(row, str):
                raise RowError(row)
            return self._example(where, number, row)
        except RowError as error:
            reason = str(error).removeprefix(f"{where}: ")
            return Example(f"row {number}", f"row {number}", self.task, "", (), error=f"{where}: {reason}")

    def _example(self, where: str, number: int, row: Mapping[str, object]) -> Example:
        video = None if row.get("video") is None else self._video(where, row["video"], row.get("video_fps"))
        if video is None and "video" in row and "image" not in row:
            raise RowError("no video")
        pictures = [] if video and row.get("image") is None else self._pictures(where, row.get("image"))
        choices = () if row.get("choices") is None else texts("choices", row["choices"])
        if len(choices) > len(LETTERS):
            raise RowError(f"{len(choices)} choices, more than there are letters")
        if (box := _box(row["box"]) if "box" in row else None) is None:
            answers = _answers(row.get("answers"), choices)
        else:
            answers = (STYLES[self.style].write(box, pictures[0].size()),)
        shown = [picture.name for picture in pictures]
        first = shown.pop(0) if video is None else video.name
        return Example(
            id=_identity(row, number),
            image_id=first,
            task=self.task if row.get("task") is None else text("task", row["task"]),
            question=self._ask(row, choices),
            answers=answers,
            regions=() if box is None else ((round(box[0]), round(box[1]), round(box[2]), round(box[3])),),
            choices=choices,
            history=_history(row.get("history")),
            others=tuple(shown),
            place=0 if video is None else len(shown),
            pictures=tuple(pictures),
            video=video,
        )

    def _ask(self, row: Mapping[str, object], choices: tuple[str, ...]) -> str:
        lettered = list(zip(LETTERS, choices, strict=False))
        parts = {
            "question": text("question", row.get("question")),
            "options": "\n".join(f"{letter}. {choice}" for letter, choice in lettered),
            "bracketed_options": "\n".join(f"({letter}) {choice}" for letter, choice in lettered),
            "context": "" if row.get("context") is None else text("context", row["context"], empty=True),
        }
        prompt = (None if choices else self.open_prompt) or self.prompt or (CHOICE_PROMPT if choices else PLAIN_PROMPT)
        return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], prompt)

    def _pictures(self, where: str, value: object) -> list[Picture]:
        values = value if isinstance(value, list) else [value]
        if not values or None in values:
            raise RowError("no image")
        return [Picture(self._source("image", entry, self.folder), where, self.max_pixels) for entry in values]

    def _video(self, where: str, value: object, rate: object) -> Video:
        """A video by its file or bytes; of a list of images the frames."""
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6):
            raise RowError(f"video_fps must be a number above 0, not {shorten(rate)}")
        source: bytes | Path | tuple[Picture, ...]
        if isinstance(value, list):
            entries = (self._source("a frame of the video", entry, self.videos) for entry in value)
            source = tuple(Picture(entry, where, self.max_pixels) for entry in entries)
        else:
            source = self._source("video", value, self.videos)
        return Video(source, where, self.sampling, rate, self.max_pixels)

    def _source(self, name: str, value: object, folder: Path) -> bytes | Path:
        """Encoded bytes, or a file: of a path, of bytes, or of what the datasets library keeps, both."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if isinstance(value, str) and value:
            return folder / value
        raise RowError(f"{name} must be a path or encoded bytes, not {shorten(value)}")


def text(name: str, value: object, empty: bool = False) -> str:
    """A text, not an empty one unless that is allowed."""
    if not isinstance(value, str):
        raise RowError(f"{name} must be a text, not {shorten(value)}")
    if not value.strip() and not empty:
        raise RowError(f"{name} is empty")
    return encodable(name, value)


def encodable(name: str, value: str) -> str:
    """The text, if tokenizers can read it: JSON allows halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half a character: {shorten(ascii(value))}") from None
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of texts with at least one in it."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RowError(f"{name} must be a list of texts, not {shorten(value)}")
    if not value:
        raise RowError(f"{name} is an empty list")
    return tuple(encodable(name, entry) for entry in value)


def shorten(value: object) -> str:
    """A value as errors show it."""
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _answers(value: object, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Accepted answers; with choices the letter of the one that is meant: by a capital, by its text, by a small letter,
    or by number from 0."""
    if not choices:
        return texts("answers", [value] if isinstance(value, str) else value)
    given = value[0] if isinstance(value, list) and len(value) == 1 else value
    known = LETTERS[: len(choices)]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(choices):
        return (known[given],)
    if isinstance(given, str):
        if len(given) == 1 and given in known:
            return (given,)
        if given in choices:
            return (known[choices.index(given)],)
        if len(given) == 1 and given.upper() in known:
            return (given.upper(),)
    raise RowError(
        f"answers must be one of the {len(choices)} choices (letter, text or number from 0), not {shorten(value)}"
    )


def _box(value: object) -> Box:
    """A box of positive area, from left, top, width and height to its corners."""
    if isinstance(value, list) and len(value) == 4:
        numbers = [edge for edge in value if isinstance(edge, int | float) and math.isfinite(edge)]
        if len(numbers) == 4 and min(numbers[2:]) > 0:
            left, top, wide, high = numbers
            return left, top, left + wide, top + high
    raise RowError(f"box must be left, top, width and height in pixels, not {shorten(value)}")


def _history(value: object) -> tuple[tuple[str, str], ...]:
    """Earlier turns: pairs, or mappings with "question" and "answer"."""
    turns = []
    for turn in [] if value is None else value if isinstance(value, list) else [value]:
        pair = [turn.get("question"), turn.get("answer")] if isinstance(turn, Mapping) else turn
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise RowError(f"history must be a list of [question, answer], not {shorten(value)}")
        turns.append((encodable("history", pair[0]), encodable("history", pair[1])))
    return tuple(turns)


def _identity(row: Mapping[str, object], number: int) -> str:
    """The row's id; behind its group's name where it has one; its number where it has neither."""
    own = row.get("id")
    own = str(number) if own is None else own
    if isinstance(own, bool) or not isinstance(own, str | int):
        raise RowError(f"id must be a text or a whole number, not {shorten(own)}")
    return str(own) if row.get("group") is None else f"{row['group']}#{own}"
