"""Pictures as they come from files: upright, nothing clipped, and regions that mean the upright picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from prunekit.data.example import Example
from prunekit.data.pictures import TURNS, Picture
from prunekit.errors import RowError
from prunekit.evaluation.regions import regions_for

ORIENTATION = 274
SIZE = (40, 24)
RAMP = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def quarters() -> Image.Image:
    """Four colours, one in each corner, so that every turn can be told from the others."""
    image = Image.new("RGB", SIZE)
    for place, colour in (((0, 0), "red"), ((20, 0), "lime"), ((0, 12), "blue"), ((20, 12), "white")):
        image.paste(colour, (*place, place[0] + 20, place[1] + 12))
    return image


def loaded(content: bytes) -> Image.Image:
    return Picture(content, "rows.jsonl row 3").load()


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(quarters(), kind, exif=exif.tobytes(), **({} if kind == "PNG" else {"quality": 95}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_datasets_and_transformers_turn_it(orientation, kind):
    if kind == "TIFF":
        content = encoded(quarters(), kind, tiffinfo={ORIENTATION: orientation})
    else:
        content = turned(orientation, kind)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    pixels = loaded(content)
    assert pixels.mode == "RGB" and pixels.size == (SIZE if orientation < 5 else SIZE[::-1])
    assert np.array_equal(np.asarray(pixels), np.asarray(expected))
    again = ImageOps.exif_transpose(pixels)  # by whoever gets it: nothing is turned twice
    assert np.array_equal(np.asarray(again), np.asarray(pixels))
    assert orientation == 1 or orientation in TURNS


def test_a_picture_whose_exif_is_broken_is_read_as_it_stands():
    pixels = loaded(encoded(quarters(), "JPEG", exif=b"Exif\0\0not a tag at all", quality=95))
    assert pixels.size == SIZE


def deep(kind: str, mode: str) -> bytes:
    values = RAMP.round().astype({"I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode])
    return encoded(Image.fromarray(values), kind)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(kind, mode):
    pixels = np.asarray(loaded(deep(kind, mode)))
    assert pixels.shape == (*RAMP.shape, 3)
    assert np.abs(pixels[..., 0] - RAMP / 257).max() <= 0.51
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_sixteen_bits_are_turned_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = loaded(encoded(Image.fromarray(RAMP.round().astype(np.uint16)), "PNG", exif=exif.tobytes()))
    assert pixels.size == SIZE[::-1]
    assert np.abs(np.asarray(pixels)[..., 0] - np.rot90(RAMP, -1) / 257).max() <= 0.51


def test_sixteen_bits_whose_white_is_nought():
    pixels = np.asarray(loaded(encoded(Image.fromarray(RAMP.round().astype(np.uint16)), "TIFF", tiffinfo={262: 0})))
    plain = np.asarray(loaded(encoded(Image.fromarray(RAMP.round().astype(np.uint16)), "TIFF")))
    assert np.abs(pixels.astype(int) + plain.astype(int) - 255).max() <= 1


@pytest.mark.parametrize(("kind", "dtype", "mode"), [("TIFF", np.int32, "I"), ("TIFF", np.float32, "F")])
def test_pixels_without_a_known_range_are_a_row_error(kind, dtype, mode):
    content = encoded(Image.fromarray(RAMP.astype(dtype)), kind)
    with pytest.raises(RowError, match=rf"rows\.jsonl row 3: .* mode {mode} .*8 or 16 bits") as caught:
        loaded(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_eight_bits_are_read_as_ever(mode):
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    content = encoded(quarters().convert(mode), kind)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(loaded(content)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_what_is_transparent_stands_on_white(mode):
    """Against transformers' own conversion, and against the mixture pixel by pixel."""
    from transformers.image_transforms import convert_to_rgb

    picture = quarters().quantize(4) if mode == "P" else quarters().convert(mode)
    clear = {"RGB": (255, 0, 0), "L": 76, "1": 0}
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(SIZE))
        options = {}
    else:
        options = {"transparency": bytes([0, 100, 200, 255]) if mode == "P" else clear[mode]}
    content = encoded(picture, "PNG", **options)
    pixels, stored = np.asarray(loaded(content)), Image.open(io.BytesIO(content)).convert("RGBA")
    assert np.array_equal(pixels, convert_to_rgb(Image.open(io.BytesIO(content)), return_numpy=True))
    colours, share = np.asarray(stored)[..., :3].astype(float), np.asarray(stored)[..., 3:] / 255
    assert share.min() < 1 and np.abs(pixels - (colours * share + 255 * (1 - share))).max() <= 1


def test_the_clear_number_of_sixteen_bits_is_white():
    values = np.array([[0, 30000, 65535], [30000, 257, 30001]], np.uint16)
    pixels = np.asarray(loaded(encoded(Image.fromarray(values), "PNG", transparency=30000)))
    assert pixels[..., 0].tolist() == [[0, 255, 255], [255, 1, 117]]


def test_regions_are_of_the_upright_picture():
    """A box around the red quarter of the picture as it is shown: the same share of it, however the file stores it."""

    class Asks:
        class scorer:
            uses_regions = True

    for orientation in range(1, 9):
        picture = Picture(turned(orientation, "PNG"), "x row 1")
        shown = np.asarray(picture.load())
        rows, columns = (shown == (255, 0, 0)).all(-1).nonzero()
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        example = Example("a", "a", "t", "q", ("x",), regions=(box,), pictures=(picture,))
        ((region,),) = regions_for(Asks(), [example])
        assert region[2] - region[0] == region[3] - region[1] == 0.5
        assert (region[0], region[1]) == tuple(0.0 if edge == 0 else 0.5 for edge in box[:2])


def test_answers_to_pictures_that_were_not_turned_are_not_found_again(monkeypatch):
    example = Example("a", "a", "t", "q", ("x",), pictures=(Picture(turned(6, "PNG"), "x row 1"),))
    now = example.digest()
    monkeypatch.setattr("prunekit.data.example.READING", "")
    assert example.digest() != now
