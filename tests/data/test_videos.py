"""Videos of rows: which frames are taken, when they are shown, and what is wrong with those that cannot be read."""

from __future__ import annotations

import io
import json
import random
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from commands import run_main
from fabricated import png
from films import STEP, film, number, write_film
from prunekit.data.source import open_source
from prunekit.data.videos import Sampling, Video
from prunekit.errors import RowError

pytest.importorskip("av")

ASKED = {"question": "what is it?", "answers": ["a"]}


def jsonl(folder: Path, *rows: dict) -> Path:
    (folder / "q.jsonl").write_text("".join(json.dumps({**ASKED, **row}) + "\n" for row in rows))
    return folder / "q.jsonl"


def opened(path: Path, name: str = "jsonl", **options):
    return open_source({"name": name, "path": str(path), **options})


def load(source, **sampling):
    return Video(source, "q.jsonl row 1", Sampling(**sampling)).load()


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi"])
def test_frames_are_those_of_their_numbers(container, tmp_path):
    """Whatever the container, wherever its keyframes are."""
    rng = random.Random(container)
    path = write_film(tmp_path / f"a.{container}", 30, 10, keyframes=rng.randint(2, 12))
    for count in (1, 2, rng.randint(3, 29), 30):
        clip = load(path, frames=count)
        assert [number(frame) for frame in clip.frames] == list(clip.indices)
        assert (len(clip.frames), clip.total, clip.fps) == (count, 30, 10)
        assert clip.seconds == tuple(index / 10 for index in clip.indices)


def test_sampling_is_that_of_qwen3s_processor():
    processor = transformers.Qwen3VLVideoProcessor(min_frames=1, max_frames=12)
    rng = random.Random(0)
    for _ in range(50):
        total, rate, fps = rng.randint(12, 400), rng.choice([10, 24, 29.97]), rng.choice([0.2, 1, 3.5])
        metadata = transformers.video_utils.VideoMetadata(total_num_frames=total, fps=rate)
        count = rng.randint(1, 12)
        assert Sampling(count).indices(total, rate) == processor.sample_frames(metadata, num_frames=count).tolist()
        assert Sampling(12, fps).indices(total, rate) == processor.sample_frames(metadata, fps=fps).tolist()
    assert Sampling().indices(7, 10) == [*range(7)] and len(Sampling().indices(99, 10)) == 32
    for total, rate in ((3, 0.5), (8, 240), (500, 60)):
        assert Sampling.up_to(8).indices(total, rate) == Sampling(min(8, total)).indices(total, rate)


def test_a_video_comes_as_a_file_as_bytes_as_frames_or_as_a_folder_of_frames(tmp_path):
    write_film(tmp_path / "films" / "a.mp4", 9)
    levels = [Image.new("RGB", (8, 6), (STEP * n,) * 3) for n in range(9)]
    (tmp_path / "films" / "shots").mkdir()
    for n, level in enumerate(levels):
        level.save(tmp_path / "films" / "shots" / f"{n:03}.png")
    shots = [f"shots/{n:03}.png" for n in range(9)]
    rows = [{"video": "a.mp4"}, {"video": "a"}, {"video": shots, "video_fps": 3}, {"video": "shots", "video_fps": 3}]
    examples = list(opened(jsonl(tmp_path, *rows), videos=str(tmp_path / "films"), frames=4))
    assert not any(example.error for example in examples)
    for example in examples:
        assert [number(frame) for frame in example.clip().frames] == [0, 3, 5, 8]
        assert number(example.image()) == 5 and example.media == ("video",)
    assert [example.clip().fps for example in examples] == [10, 10, 3, 3]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded, frames = film(9), [{"bytes": _png(level), "path": None} for level in levels]
    for name, column in (("bytes", encoded), ("dict", {"bytes": encoded, "path": "x.mp4"}), ("frames", frames)):
        pq.write_table(pa.Table.from_pylist([{**ASKED, "video": column}]), tmp_path / f"{name}.parquet")
        (example,) = opened(tmp_path / f"{name}.parquet", "parquet", frames=4)
        assert [number(frame) for frame in example.clip().frames] == [0, 3, 5, 8], example.error


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_folder_of_save_to_disk_with_videos(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {"video": datasets.Video(decode=False), **dict.fromkeys(ASKED, datasets.Value("string"))}
    row = {"video": [{"bytes": film(9), "path": None}], "question": ["q"], "answers": ["a"]}
    datasets.Dataset.from_dict(row, features=datasets.Features(features)).save_to_disk(tmp_path / "saved")
    (example,) = opened(tmp_path / "saved", "hf", frames=3)
    assert [number(frame) for frame in example.clip().frames] == [0, 4, 8]


def test_images_beside_a_video(tmp_path):
    write_film(tmp_path / "a.mp4", 9)
    (tmp_path / "a.png").write_bytes(png("red"))
    rows = [{"image": "a.png", "video": "a.mp4"}, {"image": "a.png"}, {"image": None, "video": "a.mp4"}]
    both, still, moving = opened(jsonl(tmp_path, *rows), frames=2)
    assert both.media == ("image", "video") and both.image_ids == (str(tmp_path / "a.png"), str(tmp_path / "a.mp4"))
    assert both.image_id == moving.image_id == str(tmp_path / "a.mp4")  # questions about one video belong together
    assert len(both.images()) == 1 and len(both.clip().frames) == 2
    assert still.media == ("image",) and still.clip() is None and moving.media == ("video",)


def test_a_digest_is_of_the_content_and_the_frames_taken(tmp_path):
    write_film(tmp_path / "a.mp4", 9)
    write_film(tmp_path / "b.mp4", 8)
    digests = {(name, frames): Video(tmp_path / name, "", Sampling(frames)).digest()
               for name in ("a.mp4", "b.mp4") for frames in (2, 3)}  # fmt: skip
    assert len(set(digests.values())) == 4
    assert Video((tmp_path / "a.mp4").read_bytes(), "", Sampling(2)).digest() == digests["a.mp4", 2]
    one, two = (next(iter(opened(jsonl(tmp_path, {"video": "a.mp4"}), frames=n))) for n in (2, 3))
    assert one.digest() != two.digest()


def test_a_film_that_is_to_be_turned_is_turned(tmp_path):
    """A phone's film lies on its side, and the matrix of its track says so."""
    content = film(3, size=(64, 48))
    plain = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = b"".join(
        (value % 2**32).to_bytes(4, "big") for value in (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    )
    track = content.index(b"tkhd")
    at = content.index(plain, track)
    clip = load(content[:at] + turned + content[at + len(plain) :], frames=2)
    assert {frame.size for frame in clip.frames} == {(48, 64)}
    assert {frame.size for frame in load(content, frames=2).frames} == {(64, 48)}


def _broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    whole = film(20)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("hello " * 500)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(1000))
    elif kind == "image":
        path.write_bytes(png("red", (60, 80)))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty.mp4' cannot be read: Invalid data"),
        ("half", "half.mp4' cannot be read: Invalid data"),
        ("text", "text.mp4' cannot be read: Invalid data"),
        ("folder", "a video without frames"),
        ("sound", "the file holds no video"),
        ("missing", "missing.mp4' cannot be read: No such file"),
        ("image", "the video has 1 frames, fewer than data.frames=4"),
    ],
)
def test_a_video_that_cannot_be_read_is_an_error_of_its_row(kind, reason, tmp_path):
    with pytest.raises(RowError) as error:
        load(_broken(tmp_path, kind), frames=4)
    assert (
        str(error.value).startswith("q.jsonl row 1: ") and reason in str(error.value) and "\n" not in str(error.value)
    )


def test_a_film_with_a_hole_in_it(tmp_path):
    """Noise in the middle of the pictures: frames, or one clear line."""
    content, rng = film(20, container="matroska"), random.Random(0)
    for _ in range(20):
        noisy, start = bytearray(content), rng.randrange(200, len(content) - 300)
        noisy[start : start + 300] = rng.randbytes(300)
        try:
            clip = load(bytes(noisy), frames=4)
        except RowError as error:
            assert str(error).startswith("q.jsonl row 1: ") and "\n" not in str(error)
        else:
            assert len(clip.frames) == 4


def test_more_frames_than_there_are(tmp_path):
    path = write_film(tmp_path / "a.mp4", 9)
    with pytest.raises(RowError, match=r"^q\.jsonl row 1: the video has 9 frames, fewer than data\.frames=10$"):
        load(path, frames=10)
    assert len(load(path, frames=10, fps=100).frames) == 9 and len(load(path).frames) == 9
    with pytest.raises(RowError, match=r"64 x 48 pixels, more than data\.max_pixels=100"):
        Video(path, "q.jsonl row 1", max_pixels=100).load()


def test_frames_without_a_rate_and_of_different_sizes(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red", (8, 6)))
    (tmp_path / "b.png").write_bytes(png("red", (9, 6)))
    frames = [["a.png", "a.png"], ["a.png", "b.png"], [], ["a.png", 7], 5, ["a.png"]]
    rows = [{"video": value, **({"video_fps": 0} if value == ["a.png"] else {})} for value in frames]
    examples = list(opened(jsonl(tmp_path, *rows), fps=1))
    with pytest.raises(RowError, match=r"data\.fps needs the rate of the frames, in the column 'video_fps'"):
        examples[0].clip()
    with pytest.raises(RowError, match="differ in size: 8 x 6 and 9 x 6"):
        next(iter(opened(jsonl(tmp_path, rows[1])))).clip()
    with pytest.raises(RowError, match="a video without frames"):
        examples[2].clip()
    assert "a frame of the video must be a path or encoded bytes, not 7" in examples[3].error
    assert "video must be a path or encoded bytes, not 5" in examples[4].error
    assert "video_fps must be a number above 0, not 0" in examples[5].error


def test_options_that_do_not_fit(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = jsonl(tmp_path, {"image": "a.png"})
    for option, value in (("frames", 0), ("frames", 2.5), ("frames", True), ("fps", 0), ("fps", "two")):
        with pytest.raises(ValueError, match=rf"data\.{option} must be a .*, not {value!r}"):
            opened(path, **{option: value})
    for option in ("frames", "fps"):
        with pytest.raises(ValueError, match=rf"data\.{option} samples videos, and there is no column 'video'"):
            opened(path, **{option: 2})
    with pytest.raises(ValueError, match="Unknown option of data 'gqa': 'frames'"):
        open_source({"name": "gqa", "frames": 8})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["data.frames=0"], "data.frames must be a whole number from 1 on, not 0"),
        (["data.fps=-1"], "data.fps must be a number above 0, not -1"),
        (["data.frames=8"], "data.frames samples videos, and there is no column 'video'"),
    ],
)
def test_the_command_says_it_in_one_line(options, line, monkeypatch, tmp_path, model_folder):
    (tmp_path / "a.png").write_bytes(png())
    path = jsonl(tmp_path, {"image": "a.png"})
    code, _, err = run_main(
        monkeypatch, "model=hf", f"model.name={model_folder}", "data=jsonl", f"data.path={path}", *options,
        "logger.mode=disabled", "device=cpu", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code in (1, 2) and line in err and "Traceback" not in err


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
    path = write_film(tmp_path / "a.mp4", 3)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'prunekit\[data\]'"):
        load(path)


def test_the_array_is_what_processors_take(tmp_path):
    clip = load(write_film(tmp_path / "a.mp4", 9), frames=3)
    assert clip.array().shape == (3, 48, 64, 3) and clip.array().dtype == np.uint8
    metadata = transformers.video_utils.VideoMetadata(**clip.metadata())
    assert metadata.timestamps == list(clip.seconds) and metadata.duration == pytest.approx(0.9)
    assert torch.tensor(metadata.frames_indices).tolist() == [0, 4, 8]
