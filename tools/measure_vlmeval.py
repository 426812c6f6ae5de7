"""VLMEvalKit against prunekit's own evaluation: the same model, method and questions must give the same answers.

Run in an environment that has VLMEvalKit beside prunekit: ``python -m tools.measure_vlmeval``. No network: the data set
is made here from the embedded data, as a TSV file that names its images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunekit.data.example import Example
from tools.measure_lmms import own

DATA = "PrunekitMini"


def write_data(folder: Path, examples: Sequence[Example]) -> None:
    """The data set as VLMEvalKit looks for it, and the configuration that names it."""
    lines = ["index\timage_path\tquestion\tanswer"]
    for number, example in enumerate(examples):
        path = folder / f"{number}.png"
        example.image().save(path)
        lines.append(f"{number}\t{path}\t{example.question}\t{example.answers[0]}")
    (folder / f"{DATA}.tsv").write_text("\n".join(lines) + "\n")


def vlmeval(folder: Path, options: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Run VLMEvalKit as a user would."""
    data = {DATA: {"class": "CustomVQADataset", "dataset": DATA}}
    config = {"model": {"pruned": {"class": "Prunekit", **options}}, "data": data}
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "prunekit.vlmeval", "--config", str(folder / "config.json")]
    command += ["--work-dir", str(folder / "out"), "--mode", "infer"]
    print("$", " ".join(["python", *command[1:]]), json.dumps(config["model"]))
    env = {**os.environ, "LMUData": str(folder), "HF_HUB_OFFLINE": "1", "PRED_FORMAT": "tsv"}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    return subprocess.run(command, env=env, text=True, capture_output=True, cwd=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="fastv")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=84)
    asked = parser.parse_args()
    import pandas

    from prunekit.data import load

    with tempfile.TemporaryDirectory() as name:
        folder, examples = Path(name), load("test", asked.limit)
        os.environ["PRUNEKIT_CACHE"] = str(folder / "prunekit")
        write_data(folder, examples)
        options = {"pretrained": "mini", "method": asked.method, "keep_ratio": asked.keep_ratio, "max_new_tokens": 8}
        done = vlmeval(folder, {**options, "device": "cpu"})
        files = list((folder / "out").rglob(f"pruned_{DATA}.tsv"))
        if done.returncode or not files:
            print(done.stdout[-3000:], done.stderr[-6000:], file=sys.stderr)
            return 1
        table = pandas.read_csv(files[0], sep="\t", dtype=str, keep_default_na=False)
        theirs = {examples[int(row["index"])].id: row["prediction"] for _, row in table.iterrows()}
        ours = own(folder, asked.method, asked.keep_ratio, examples, 1)
        same = sum(theirs[row["id"]] == row["prediction"] for row in ours.rows)
        changed = sum(row["prediction"] != row["dense_prediction"] for row in ours.rows)
        print(f"{len(theirs)} questions: {same} answers identical; pruning changes {changed} of them against dense")
        return 0 if same == len(ours.rows) == len(theirs) else 1


if __name__ == "__main__":
    sys.exit(main())
