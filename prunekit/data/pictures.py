"""An image of a row, as it came from its file: decoded when asked for, and only if it is what it should be."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from prunekit.errors import RowError

MAX_PIXELS = 50_000_000
"""More pixels than this in one picture are taken for a mistake unless ``data.max_pixels`` says otherwise."""


@dataclass(frozen=True)
class Picture:
    """Encoded bytes, or the file that holds them.

    Attributes:
        where: file and row, for errors.
        max_pixels: a larger picture is refused before any of it is decoded.
    """

    source: bytes | Path
    where: str
    max_pixels: int = MAX_PIXELS

    @cached_property
    def name(self) -> str:
        """The same for the same picture: the file's path, or a digest of the bytes."""
        return str(self.source) if isinstance(self.source, Path) else self.digest()

    def digest(self) -> str:
        """Digest of the encoded bytes. Raises RowError if their file cannot be read."""
        return hashlib.blake2b(self._bytes(), digest_size=12).hexdigest()

    def load(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            RowError: for a missing file, bytes that are no image, and more than ``max_pixels`` pixels.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit is ours, and Pillow's remarks name no row
            try:
                picture = Image.open(io.BytesIO(self._bytes()))
                if picture.width * picture.height > self.max_pixels:
                    raise RowError(
                        f"{self.where}: the image has {picture.width} x {picture.height} pixels, more than "
                        f"data.max_pixels={self.max_pixels}"
                    )
                return picture.convert("RGB")
            except (RowError, MemoryError):
                raise
            except Exception as error:  # decoders raise whatever they like
                raise RowError(f"{self.where}: the image cannot be read: {_reason(error)}") from None

    def _bytes(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
            raise RowError(
                f"{self.where}: image '{self.source}': {getattr(error, 'strerror', None) or error}"
            ) from None


def _reason(error: Exception) -> str:
    """Pillow's own words, without the address of the buffer in them."""
    text = str(error).partition(" <_io")[0]
    return "not an image of a known format" if text.startswith("cannot identify") else text
