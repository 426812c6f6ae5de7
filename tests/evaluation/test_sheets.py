"""Contact sheets: a token's box shows what the token claims to show."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import zoo
from prunekit.evaluation.sheets import FRAMES, centre, dim, example_places, panel_counts, pixels, sheet
from prunekit.families import family_of
from prunekit.families.geometry import SEPARATOR, joined, raster, thumbnail, with_newlines
from prunekit.views.places import places_of

RNG = np.random.default_rng()


def painted(rows: int, columns: int, cell: int = 24) -> tuple[Image.Image, np.ndarray]:
    """A picture with a colour of its own in each cell, and the colours [rows, columns, 3]."""
    colours = RNG.integers(0, 255, (rows, columns, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1)), colours


def colour(image: Image.Image, box: np.ndarray) -> np.ndarray:
    """The median colour inside a box."""
    left, top, right, bottom = pixels(box, image)
    return np.median(np.asarray(image)[top : bottom + 1, left : right + 1].reshape(-1, 3), axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_every_token_lies_on_what_it_shows(seed):
    """A tiled picture with newlines and its thumbnail, then a video whose encoder joins two frames, then a picture."""
    rng = np.random.default_rng(seed)
    rows, columns, frames, side = (int(rng.integers(2, 5)) for _ in range(4))
    tiles, clip, plain = (
        raster("image", 1, rows, columns),
        raster("video", frames, side, side),
        raster("image", 1, 2, 3),
    )
    tiled = joined(tiles, thumbnail(2, 2, tiles), with_newlines(tiles))
    video = joined(clip, clip.tokens, SEPARATOR)
    kinds = ["image"] * len(tiled) + ["video"] * len(video) + ["image"] * len(plain)
    places = places_of({"image": [tiled, plain], "video": [video]}, [kinds])
    whole, last = painted(rows, columns), painted(2, 3)
    shots = [painted(side, side) for _ in range(2 * frames)]
    media = [[whole[0]], [image for image, _ in shots], [last[0]]]
    drawn = sheet(media, places)
    checked = 0
    for token in range(len(kinds)):
        number, frame, row, column = (int(getattr(places, f)[0, token]) for f in ("medium", "frame", "row", "column"))
        if row < 0:
            assert np.isnan(drawn.boxes[token]).all() and drawn.panels[token] == -1
        elif not places.thumbnail[0, token]:
            colours = {0: whole[1], 1: shots[2 * max(frame, 0)][1], 2: last[1]}[number]
            assert np.abs(colour(drawn.image, drawn.boxes[token]) - colours[row, column]).max() <= 2
            checked += 1
    assert checked == rows * columns + frames * side * side + 6
    small = drawn.boxes[: len(tiled)][places.thumbnail[0, : len(tiled)].numpy()]
    assert len(small) == 4 and len({tuple(box) for box in small.round(4).tolist()}) == 4
    assert len(set(drawn.panels[drawn.panels >= 0])) == 1 + 1 + frames + 1  # a thumbnail is a picture beside its tiles


def test_of_a_long_video_some_frames_are_shown_and_all_are_counted():
    clip = raster("video", 40, 2, 2)
    drawn = sheet([[painted(2, 2)[0] for _ in range(40)]], places_of({"video": [clip]}, [["video"] * 160]))
    shown = {int(panel) for panel, box in zip(drawn.panels, drawn.boxes, strict=True) if not np.isnan(box).any()}
    assert len(shown) == FRAMES and {0, 39} <= shown
    kept = RNG.choice(160, 50, replace=False).tolist()
    expected = [(sum(token // 4 == frame for token in kept), 4) for frame in range(40)]
    assert panel_counts(drawn.panels, kept) == expected


def test_what_went_is_washed_out():
    image, _ = painted(2, 2)
    boxes = sheet([[image]], places_of({"image": [raster("image", 1, 2, 2)]}, [["image"] * 4])).boxes
    dimmed = dim(image, boxes, {1, 2})
    for token in range(4):
        same = np.array_equal(colour(dimmed, boxes[token]), colour(image, boxes[token]))
        assert same == (token in (1, 2))


def test_a_picture_is_cropped_as_the_processor_crops_it():
    """CLIP shrinks the shorter side to 336 and takes the middle 336 × 336: of 300 × 200, columns 50 to 250."""
    image = Image.fromarray(np.arange(300, dtype=np.uint16).repeat(200).reshape(300, 200).T.astype(np.uint8))
    middle = centre(image, {"shortest_edge": 336}, {"height": 336, "width": 336})
    assert middle.size == (200, 200) and np.array_equal(np.asarray(middle), np.asarray(image)[:, 50:250])


def test_a_family_without_known_places_has_none():
    batch = zoo.batch("deepseek_vl", "none")
    assert example_places(family_of(zoo.build("deepseek_vl")), batch.inputs) is None
