"""Writes the tables of ``docs/performance.md`` from benches that it runs: ``python -m tools.measure_performance``.

Each table stands between markers under the command that made it. ``--small`` runs a small model with few rounds, to see
that all works; ``--only NAME`` one section. Sections that need a GPU keep what they have where there is none. Run it on
a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from prunekit.bench.report import over_ceiling

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"

QUARTER = ["schedule=one_shot", "keep_ratio=0.25"]
SECTIONS: dict[str, list[str]] = {
    "cpu": ["bench.shape=medium", "device=cpu", *QUARTER, "bench.rounds=41", "bench.profile=true"],
    "cpu-ceiling": [
        "bench.shape=medium", "device=cpu", *QUARTER, "bench.rounds=151", "bench.eager=false", "bench.new_tokens=0"
    ],
    "cpu-sweep": [
        "bench.shape=medium", "device=cpu", *QUARTER, "bench.visual_tokens=[144,576,1152,2880]", "bench.rounds=9"
    ],
    "cpu-long": [
        "bench.shape=small", "device=cpu", *QUARTER, "bench.visual_tokens=[2048,8192,32768]", "bench.rounds=5",
        "bench.eager=false", "bench.new_tokens=8",
    ],
    "cpu-overhead": [
        "bench.shape=medium", "device=cpu", "schedule=one_shot", "keep_tokens=575", "bench.rounds=41",
        "bench.eager=false",
    ],
    "gpu": ["bench.shape=llava-1.5-7b", "device=cuda", *QUARTER, "bench.rounds=15", "bench.profile=true"],
    "gpu-overhead": [
        "bench.shape=llava-1.5-7b", "device=cuda", "schedule=one_shot", "keep_tokens=575", "bench.rounds=15",
        "bench.eager=false",
    ],
    "gpu-sweep": ["bench.shape=qwen2.5-vl-7b", "device=cuda", *QUARTER, "bench.visual_tokens=[576,2880,32768]"],
    "gpu-next": ["bench.shape=llava-next", "device=cuda", *QUARTER],
    "gpu-13b": ["bench.shape=llava-1.5-13b", "device=cuda", *QUARTER],
}  # fmt: skip
SMALL = {
    "shape": "bench.shape=small",
    "bench.rounds": "bench.rounds=3",
    "bench.visual_tokens": "bench.visual_tokens=[144,576]",
}
PROFILE_ROWS = 12
LONG = "bench.visual_tokens=[2048,8192,32768]"
"""Counts of a video, whose times the page gives in milliseconds as well."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small model, few rounds")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    given = parser.parse_args()
    for name, options in SECTIONS.items():
        if given.only not in (None, name) or ("device=cuda" in options and not torch.cuda.is_available()):
            continue
        options = [SMALL.get(option.split("=")[0], option) for option in options] if given.small else options
        text = PAGE.read_text()
        note = "A run with `--small`, to see that all works: not figures to quote.\n\n" if given.small else ""
        PAGE.write_text(replaced(text, name, note + section(options)))
        print(f"{name}: written to {PAGE}")


def section(options: list[str]) -> str:
    """Run one bench; its command, table and profile as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "prunekit", "task=bench", *options, f"hydra.run.dir={folder}"]
        subprocess.run(command, cwd=ROOT, check=True)
        record = json.loads((Path(folder) / "bench.json").read_text())
        profile = Path(folder) / "profile.txt"
        operators = profile_table(profile.read_text()) if profile.exists() else ""
    shown = f"```bash\npython -m prunekit task=bench {' '.join(options)}\n```"
    where = (
        f"{record['model']} ({record['parameters'] / 1e6:.0f} M parameters), {record['dtype']}, {record['device']}, "
        f"{record['threads']} CPU threads, torch {record['torch']}; medians of {record['points'][0]['rounds']} rounds, "
        "quartiles in brackets, over ceiling the median's 95 % interval"
    )
    parts = [shown, where + ".", table(record, times=LONG in options or not record["device"].endswith("CPU"))]
    parts += sorted({note for point in record["points"] for note in point["notes"]})
    return "\n\n".join([*parts, operators] if operators else parts)


def table(record: dict[str, Any], times: bool) -> str:
    """Ratios to dense of every contender; milliseconds as well for ``times``."""
    heads = ["visual tokens", "run", "prefill time", "FLOPs", "efficiency", "over ceiling", "ms a token, ratio"]
    heads += ["activations", "KV cache", *(["prefill ms", "ms a token", "vision ms"] if times else [])]
    lines = [heads, ["---:", "---", *["---:"] * (len(heads) - 2)]]
    for point in record["points"]:
        dense = point["contenders"]["dense"]
        for name, row in point["contenders"].items():
            cells = [str(point["visual_tokens"]), name, ratio(row["prefill_ratio"]), f"{row['flops_ratio']:.3f}"]
            cells += [
                "–" if row["efficiency"] is None else f"{row['efficiency']:.3f}",
                over_ceiling(row["over_ceiling"]) if "over_ceiling" in row else "–",
            ]
            cells += ["–" if row["token_ratio"] is None else ratio(row["token_ratio"])]
            cells += [f"{row[key] / dense[key]:.3f}" for key in ("activation_bytes", "kv_bytes")]
            if times:
                cells += [f"{1000 * spread['median']:.2f}" if spread else "–" for spread in times_of(row, point)]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times_of(row: dict[str, Any], point: dict[str, Any]) -> list[dict[str, float] | None]:
    return [row["prefill_s"], row["token_s"], point["vision_s"]]


def ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def profile_table(text: str) -> str:
    """The operators of one pruned prefill: the profiler's name, share of self time and calls columns."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("-")]
    heads = [head.strip() for head in lines[0].split("  ") if head.strip()]
    wanted = [i for i, head in enumerate(heads) if head in ("Name", "Self CPU %", "Self CUDA %", "# of Calls")]
    rows = []
    for line in lines[1 : PROFILE_ROWS + 1]:
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) == len(heads):
            rows.append([cells[i] for i in wanted])
    made = [[heads[i] for i in wanted], ["---", *["---:"] * (len(wanted) - 1)], *rows]
    return "Operators of one pruned prefill:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in made)


def replaced(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers of a section."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if start not in page or end not in page:
        raise SystemExit(f"{PAGE} has no markers {start} and {end}")
    head, _, rest = page.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main()
