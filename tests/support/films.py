"""Short videos whose frames tell their own number."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEP = 6
"""Grey levels from one frame to the next."""


def film(
    frames: int = 20, fps: int = 10, size: tuple[int, int] = (64, 48), *, container: str = "mp4", keyframes: int = 7
) -> bytes:
    """An encoded video; frame ``n`` is grey of level ``STEP * n``, with a keyframe every so many frames."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream({"webm": "libvpx", "avi": "mpeg4"}.get(container, "h264"), rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", keyframes, 4_000_000
        for number in range(frames):
            level = np.full((size[1], size[0], 3), STEP * number, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(level, "rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def write_film(path: Path, *arguments: int, **options: object) -> Path:
    """A video in a file; its ending is its container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"mkv": "matroska"}
    ending = path.suffix[1:].lower()
    path.write_bytes(film(*arguments, container=kinds.get(ending, ending), **options))
    return path


def number(frame: Image.Image) -> int:
    """Which frame of a film it is."""
    return round(float(np.asarray(frame).mean()) / STEP)
