"""An image of a row, as it came from its file: decoded when asked for, and only if it is what it should be."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from prunekit.errors import RowError

MAX_PIXELS = 50_000_000
"""More pixels than this in one picture are taken for a mistake unless ``data.max_pixels`` says otherwise."""

READING = "upright, on white"
"""Stands in digests of examples for the way pictures are read: answers to pictures that were read in another way
(not turned, clipped, their transparency ignored) are not found again."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""

TAGS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps the orientation; nobody is to turn the picture a second time."""

ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262
"""Tags of EXIF and TIFF; a photometric interpretation of 0 means that white is 0."""


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

    def size(self) -> tuple[int, int]:
        """Width and height, upright; only the head of the file is read. Raises RowError as ``load`` does."""
        try:
            picture = Image.open(io.BytesIO(self._bytes()))
            wide, high = picture.size
            return (high, wide) if _orientation(picture) in (5, 6, 7, 8) else (wide, high)
        except RowError:
            raise
        except Exception as error:  # decoders raise whatever they like
            raise RowError(f"{self.where}: the image cannot be read: {_reason(error)}") from None

    def load(self) -> Image.Image:
        """The picture in RGB, upright: turned as its EXIF orientation says, 16-bit grey scaled to 8 bits, what is
        transparent on white.

        Raises:
            RowError: for a missing file, bytes that are no image, more than ``max_pixels`` pixels, and pixels whose
                range is not known (32-bit numbers, floating point).
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
                return upright(picture)
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


def upright(picture: Image.Image) -> Image.Image:
    """A picture as it was opened, in RGB and turned as its EXIF orientation says; the result has no orientation left.

    Raises:
        ValueError: for pixels whose range is not known.
    """
    picture.load()
    colours = in_rgb(picture)
    turn = TURNS.get(_orientation(picture))
    if turn is not None:
        colours = colours.transpose(turn)
    for name in TAGS:
        colours.info.pop(name, None)
    return colours


def in_rgb(picture: Image.Image) -> Image.Image:
    """A loaded picture in RGB, what is transparent on white, as transformers' processors have it. Pillow's own
    conversion shows the colours below the transparency, and cuts all that is above 255 off; here 16-bit grey is scaled.

    Raises:
        ValueError: for pixels whose range is not known.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        if picture.has_transparency_data:
            shown = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
        return picture.convert("RGB")
    # Pillow keeps 16 bits in 32 where it reads PNG (in older releases) and PPM, scaled to the whole range already.
    if not picture.mode.startswith("I;16") and picture.format not in ("PNG", "PPM"):
        raise ValueError(f"pixels of Pillow's mode {picture.mode} have no known range; store it with 8 or 16 bits")
    tags = getattr(picture, "tag_v2", {})
    top = 2 ** min(16, int(np.ravel(tags.get(BITS, 16))[0])) - 1  # TIFF has 12 bits as well
    stored = np.asarray(picture)
    grey = stored.astype(np.float32).clip(0, top) * (255 / top)
    if tags.get(PHOTOMETRIC) == 0:
        grey = 255 - grey
    if "transparency" in picture.info:  # of PNG: the one number that is clear
        grey[stored == picture.info["transparency"]] = 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) without one or where it cannot be read."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # tags that are broken; the pixels are not
        return 1


def _reason(error: Exception) -> str:
    """Pillow's own words, without the address of the buffer in them."""
    text = str(error).partition(" <_io")[0]
    return "not an image of a known format" if text.startswith("cannot identify") else text
