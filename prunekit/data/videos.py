"""A video of a row: a file, its bytes, or its frames; sampled when asked for."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunekit.data.pictures import MAX_PIXELS, Picture
from prunekit.digests import digest
from prunekit.errors import PrunekitError, RowError

FRAMES = 32
"""Frames of a video where neither ``data.frames`` nor ``data.fps`` says how many: LLaVA-OneVision's protocol."""

FRAME_LIST_FPS = 2.0
"""Frames a second of a list of images that brings no rate, as qwen-vl-utils takes it."""

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4", ".gif")
"""Tried in this order where a benchmark names its videos without an ending."""

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""What counts as a frame in a folder of frames."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video a model sees.

    Attributes:
        frames: exactly so many, evenly from the first to the last; with ``fps`` the most there may be.
        fps: frames a second.

    Raises:
        PrunekitError: for a count below one, or a rate that is not above zero.
    """

    frames: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and (type(self.frames) is not int or self.frames < 1):
            raise PrunekitError(f"data.frames must be a whole number from 1 on, not {self.frames!r}")
        if self.fps is not None and (isinstance(self.fps, bool) or not isinstance(self.fps, int | float)):
            raise PrunekitError(f"data.fps must be a number above 0, not {self.fps!r}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise PrunekitError(f"data.fps must be a number above 0, not {self.fps!r}")

    @classmethod
    def up_to(cls, frames: int) -> Sampling:
        """All frames of a short video, so many of a longer one."""
        return cls(frames, fps=1e9)  # above the rate of any video, so that the number alone decides

    def indices(self, total: int, rate: float) -> list[int]:
        """The frames to take of ``total`` at ``rate`` a second, in order. By number alone they are spread as Qwen3-VL's
        processor and lmms-eval spread them, the first and the last included; ``fps`` says how many of them there are.

        Raises:
            RowError: if there are fewer than ``frames``.
        """
        count = self.frames or FRAMES
        if self.fps is not None:
            count = min(max(1, int(total / rate * self.fps)), count, total)
        elif self.frames is None:
            count = min(count, total)
        elif count > total:
            raise RowError(f"the video has {total} frames, fewer than data.frames={count}")
        return np.linspace(0, total - 1, count).round().astype(int).tolist()


UP_TO_FRAMES = Sampling()
"""All frames of a short video, ``FRAMES`` of a longer one."""


@dataclass(frozen=True)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: RGB, upright, of one size.
        indices: the number of each frame in the video, from 0.
        total: frames of the whole video.
        fps: frames a second of the whole video.
    """

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    total: int
    fps: float

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each sampled frame is shown."""
        return tuple(index / self.fps for index in self.indices)

    def array(self) -> np.ndarray:
        """The frames as uint8 [F, height, width, 3]."""
        return np.stack([np.asarray(frame) for frame in self.frames])

    def metadata(self) -> dict[str, Any]:
        """What transformers' video processors want to know of a video whose frames were sampled before."""
        width, height = self.frames[0].size
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "width": width,
            "height": height,
            "duration": self.total / self.fps,
            "video_backend": "pyav",
            "frames_indices": list(self.indices),
        }


def clip_inputs(clips: Sequence[Clip]) -> dict[str, Any]:
    """Clips as transformers' processors take them: sampled already, and with the time of each frame, which some models
    write into the prompt."""
    return {
        "videos": [clip.array() for clip in clips],
        "video_metadata": [clip.metadata() for clip in clips],
        "do_sample_frames": False,
    }


@dataclass(frozen=True)
class Video:
    """Encoded bytes, the file or the folder of frames that holds them, or the frames one by one.

    Attributes:
        where: file and row, for errors.
        rate: frames a second of frames that come one by one; None if the row does not say it.
        max_pixels: a larger frame is refused.
    """

    source: bytes | Path | tuple[Picture, ...]
    where: str
    sampling: Sampling = UP_TO_FRAMES
    rate: float | None = None
    max_pixels: int = MAX_PIXELS

    @cached_property
    def name(self) -> str:
        """The same for the same video: the file's path, or a digest of the content."""
        return str(self.source) if isinstance(self.source, Path) else self.digest()

    def digest(self) -> str:
        """Digest of the encoded video and of which frames are taken. Raises RowError if a file cannot be read."""
        return digest(f"{self._content} {self.rate} {self.sampling}", 24)

    @cached_property
    def _content(self) -> str:
        """Digest of the bytes."""
        pictures = self._pictures()
        if pictures is not None:
            return " ".join(picture.digest() for picture in pictures)
        if isinstance(self.source, bytes):
            return hashlib.blake2b(self.source, digest_size=12).hexdigest()
        try:
            with self._file().open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
        except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
            raise self._unreadable(error) from None

    def load(self) -> Clip:
        """The sampled frames.

        Raises:
            RowError: for a missing or broken file, a video without frames or with fewer than ``data.frames``, frames of
                different sizes or with more than ``max_pixels`` pixels, and ``data.fps`` where the rate is not known.
        """
        pictures = self._pictures()
        try:
            return self._decoded() if pictures is None else self._gathered(pictures)
        except RowError as error:
            text = str(error)
            raise RowError(text if text.startswith(self.where) else f"{self.where}: {text}") from None

    def _gathered(self, pictures: Sequence[Picture]) -> Clip:
        if not pictures:
            raise RowError("a video without frames")
        if self.rate is None and self.sampling.fps is not None:
            raise RowError("data.fps needs the rate of the frames, in the column 'video_fps'")
        rate = self.rate or FRAME_LIST_FPS
        indices = self.sampling.indices(len(pictures), rate)
        frames = tuple(pictures[index].load() for index in indices)
        if len(sizes := {frame.size for frame in frames}) > 1:
            (w, h), (x, y), *_ = sorted(sizes)
            raise RowError(f"the frames of the video differ in size: {w} x {h} and {x} x {y}")
        return Clip(frames, tuple(indices), len(pictures), rate)

    def _decoded(self) -> Clip:
        import_av(self.where)
        source = io.BytesIO(self.source) if isinstance(self.source, bytes) else str(self._file())
        try:
            return _decode(source, self.sampling, self.max_pixels)
        except (RowError, MemoryError):
            raise
        except Exception as error:  # FFmpeg's errors come in classes of their own, for all that can be wrong in a file
            named = "" if isinstance(self.source, bytes) else f" '{self.source!s}'"
            raise RowError(f"the video{named} cannot be read: {_reason(error)}") from None

    def _pictures(self) -> tuple[Picture, ...] | None:
        """The frames of a list or a folder, None for an encoded video."""
        if isinstance(self.source, tuple):
            return self.source
        if isinstance(self.source, bytes) or not self._file().is_dir():
            return None
        files = sorted(file for file in self._file().iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        return tuple(Picture(file, self.where, self.max_pixels) for file in files)

    def _file(self) -> Path:
        """The file; of a name without an ending the first that there is."""
        assert isinstance(self.source, Path)
        path = self.source
        try:
            if path.exists():
                return path
            candidates = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
            return next((file for file in candidates if file.exists()), path)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> RowError:
        return RowError(f"{self.where}: video '{self.source!s}': {getattr(error, 'strerror', None) or error}")


def import_av(what: str) -> Any:
    """PyAV, or one line on how to get it."""
    try:
        import av
    except ImportError:
        raise PrunekitError(f"{what}: reading videos needs PyAV: pip install 'prunekit[data]'") from None
    av.logging.set_level(None)
    return av


def _decode(source: Any, sampling: Sampling, max_pixels: int) -> Clip:
    """The sampled frames of a file: its packets are counted first, so that a header's wrong number does no harm, then
    only what lies between a sampled frame and the keyframe before it is decoded."""
    import av

    with av.open(source) as container:
        if not container.streams.video:
            raise RowError("the file holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
        times = sorted(pts for pts, _ in packets)
        if not times:
            raise RowError("a video without frames")
        if stream.width * stream.height > max_pixels:
            raise RowError(
                f"the video has {stream.width} x {stream.height} pixels, more than data.max_pixels={max_pixels}"
            )
        rate = _rate(stream, times)
        indices = sampling.indices(len(times), rate)
        keys = sorted(pts for pts, key in packets if key) or times[:1]
        frames = _frames_at(container, stream, [times[index] for index in indices], keys)
    return Clip(tuple(frames), tuple(indices), len(times), rate)


def _rate(stream: Any, times: Sequence[int]) -> float:
    """Frames a second: the stream's own number, or what its time stamps come to."""
    if stream.average_rate:
        return float(stream.average_rate)
    span = float((times[-1] - times[0]) * stream.time_base)
    if span <= 0:
        return FRAME_LIST_FPS
    return (len(times) - 1) / span


def _frames_at(container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[int]) -> list[Image.Image]:
    """The frames at the time stamps ``wanted`` (ascending; some may repeat)."""
    frames: list[Image.Image] = []
    decoder, position = None, None
    for target in wanted:
        key = keys[max(0, bisect_right(keys, target) - 1)]
        if decoder is None or position is None or key > position:
            container.seek(key, stream=stream)
            decoder, position = container.decode(stream), None
        while position is None or position < target:
            frame = next(decoder, None)
            if frame is None:
                raise RowError(f"the video breaks off: {len(frames)} of {len(wanted)} frames could be read")
            if frame.pts is not None and frame.pts >= target:
                image = _upright(frame)
            position = frame.pts if frame.pts is not None else position
        frames.append(image)
    return frames


def _upright(frame: Any) -> Image.Image:
    """A frame in RGB, turned as the file says that it is to be shown."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    image = frame.to_image()
    return image if not turns else image.transpose((None, *_TURNS)[turns])


_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""Counter-clockwise, as FFmpeg counts."""


def _reason(error: Exception) -> str:
    """FFmpeg's words, without its number and the file's name."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
