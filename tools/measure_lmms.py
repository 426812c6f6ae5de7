"""lmms-eval against prunekit's own evaluation: the same model, method and questions must give the same answers.

Run in an environment with ``pip install -e '.[lmms]'``: ``python -m tools.measure_lmms``. No network: the task is made
here from the embedded data, as a parquet file and a YAML for ``--include_path``. With ``--frames 4`` each question is
asked of a clip of so many pictures; the embedded model takes none, so ``--model`` must name one that does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunekit.data.example import Example
from prunekit.data.videos import Sampling, Video
from prunekit.evaluation.run import Evaluation

TASK = """\
task: prunekit_mini
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function mini_task.images
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
"""
CODE = """\
import io

from PIL import Image


def images(doc):
    if "video" in doc:
        return [doc["video"]]
    return [Image.open(io.BytesIO(doc["image"]["bytes"] if isinstance(doc["image"], dict) else doc["image"]))]
"""


def clips(folder: Path, examples: Sequence[Example], frames: int) -> list[Example]:
    """The questions, each asked of a clip: its own picture and those of the examples after it, a second each."""
    import av

    asked = []
    for place, example in enumerate(examples):
        path = folder / f"{place}.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("h264", rate=1)
            stream.width = stream.height = 224
            for one in range(frames):
                picture = examples[(place + one) % len(examples)].image().resize((224, 224))
                file.mux(stream.encode(av.VideoFrame.from_image(picture)))
            file.mux(stream.encode())
        video = Video(path, str(path), Sampling(frames))
        asked.append(replace(example, pictures=(), others=(), video=video, image_id=str(path), regions=()))
    return asked


def write_task(folder: Path, examples: Sequence[Example]) -> None:
    """The local task: a parquet file with the images in it, the YAML, and the function that it names."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for example in examples:
        row: dict[str, object] = {"id": example.id, "question": example.question, "answer": example.answers[0]}
        if example.video is not None:
            rows.append({**row, "video": example.video.name})
            continue
        picture = io.BytesIO()
        example.image().save(picture, "PNG")
        rows.append({**row, "image": picture.getvalue()})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "mini.parquet")
    (folder / "mini_task.yaml").write_text(TASK.format(data=folder / "mini.parquet"))
    (folder / "mini_task.py").write_text(CODE)


def lmms_eval(
    folder: Path, model_args: str, batch_size: int, tasks: str = "prunekit_mini"
) -> subprocess.CompletedProcess[str]:
    """Run lmms-eval as a user would."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "prunekit", "--model_args", model_args, "--tasks", tasks]
    command += ["--include_path", str(folder), "--batch_size", str(batch_size), "--device", "cpu"]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    print("$ lmms-eval", " ".join(command[3:]))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    return subprocess.run(command, env=env, text=True, capture_output=True)


def samples(folder: Path) -> dict[str, str]:
    """What lmms-eval logged: its answer for each question's id."""
    (path,) = (folder / "out").rglob("*samples_prunekit_mini.jsonl")
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    ids = json.loads((folder / "ids.json").read_text())
    return {ids[row["doc_id"]]: _text(row["filtered_resps"]).strip() for row in logged}


def _text(answer: Any) -> str:
    """An answer, which lmms-eval logs inside lists."""
    return answer if isinstance(answer, str) else _text(answer[0])


def score(folder: Path) -> float:
    """lmms-eval's own accuracy."""
    (path,) = (folder / "out").rglob("*results.json")
    found = json.loads(path.read_text())["results"]["prunekit_mini"]
    return next(value for key, value in found.items() if key.startswith("exact_match,"))


def own(
    folder: Path, method: str, keep: float, examples: Sequence[Example], batch_size: int, **loading: Any
) -> Evaluation:
    """prunekit's evaluation of the same; ``loading`` says which model, and how."""
    import prunekit
    from prunekit.evaluation.run import evaluate
    from prunekit.models import load_model

    loaded = load_model(**loading, device="cpu", dtype="float32")
    pruner = prunekit.method(method, keep_ratio=keep)
    return evaluate(loaded, examples, pruner, folder / "own", batch_size=batch_size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="fastv")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=84)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--base", help="a chat model of lmms-eval's own to prune, llava_hf say")
    parser.add_argument("--model", default="mini", help="an embedded model, or a folder")
    parser.add_argument("--frames", type=int, help="ask of clips of so many frames")
    parser.add_argument("--quantization", help="int8, int4 or nf4")
    parser.add_argument("--adapter", help="a folder with PEFT's adapter")
    given = parser.parse_args()
    from prunekit.data import load

    loading = {"name": given.model, "quantization": given.quantization, "adapter": given.adapter}
    with tempfile.TemporaryDirectory() as name:
        folder, examples = Path(name), load("test", given.limit)
        if given.frames:
            examples = clips(folder, examples, given.frames)
        os.environ["PRUNEKIT_CACHE"] = str(folder / "prunekit")
        write_task(folder, examples)
        (folder / "ids.json").write_text(json.dumps([e.id for e in examples]))
        unknown = lmms_eval(folder, f"pretrained={given.model}", 1, tasks="prunekit_nine")
        print("an unknown task:", unknown.stderr.strip().splitlines()[-1])
        model_args = f"pretrained={given.model},method={given.method},keep_ratio={given.keep_ratio},dtype=float32"
        asked = {"base": given.base, "quantization": given.quantization, "adapter": given.adapter,
                 "max_num_frames": given.frames}  # fmt: skip
        model_args += "".join(f",{key}={value}" for key, value in asked.items() if value)
        done = lmms_eval(folder, model_args, given.batch_size)
        print(done.stdout[-3000:])
        if done.returncode or not list((folder / "out").rglob("*samples*.jsonl")):
            print(done.stderr[-6000:], file=sys.stderr)
            return 1
        theirs, ours = (
            samples(folder),
            own(folder, given.method, given.keep_ratio, examples, given.batch_size, **loading),
        )
        right = sum(bool(row["correct"]) for row in ours.rows)
        same = sum(theirs[row["id"]] == row["prediction"] for row in ours.rows)
        for row in ours.rows:
            if theirs[row["id"]] != row["prediction"]:
                print(f"{row['id']}: lmms-eval {theirs[row['id']]!r}, prunekit {row['prediction']!r}")
        changed = sum(row["prediction"] != row["dense_prediction"] for row in ours.rows)
        print(f"{len(theirs)} questions: {same} answers identical; pruning changes {changed} of them against dense")
        print(f"accuracy: lmms-eval {score(folder):.4f}, prunekit {right / len(ours.rows):.4f}")
        return 0 if same == len(ours.rows) == len(theirs) and abs(score(folder) - right / len(ours.rows)) < 1e-9 else 1


if __name__ == "__main__":
    sys.exit(main())
