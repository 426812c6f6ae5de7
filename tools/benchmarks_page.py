"""Writes the tables of docs/benchmarks.md that say what the presets do, from conf/data.

python -m tools.benchmarks_page
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from prunekit.data.benchmarks import BENCHMARKS, REFUSED
from prunekit.data.boxes import STYLES
from prunekit.data.source import defaults
from prunekit.files import put_between
from prunekit.results.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
EXAMPLE = ((64.0, 48.0, 320.0, 240.0), (640, 480))
"""A box and the size of its image, as the table of styles shows them."""


def main() -> None:
    for name, table in (("presets", presets()), ("styles", styles()), ("prompts", prompts())):
        put_between(PAGE, table, name)
    print(f"written to {PAGE}")


def presets() -> str:
    """A row a benchmark: what it is, where it is, how it asks, what an answer is worth."""
    rows = []
    for name in BENCHMARKS:
        data = defaults(name)
        config = f" ({data['config']})" if data.get("config") else ""
        head = (
            (ROOT / "conf" / "data" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ").removesuffix(".")
        )
        rows.append(
            [f"`{name}`", head, f"{data['path']}{config}, {data['split']}", ending(name), f"`{data['metric']}`"]
        )
    rows += [[f"`{name}`", "refused", "", "", why.partition(";")[0]] for name, why in REFUSED.items()]
    return markdown_table(["`data=`", "what", "hub id (configuration), split", "prompt", "metric"], rows, align="lllll")


def ending(name: str) -> str:
    """What a prompt ends with, in a word."""
    prompt = str(defaults(name)["prompt"]).strip()
    words = {SHORT: "short", LETTER: "letter", LETTER[:-1]: "letter", "{question}": "the question alone"}
    label = next((word for end, word in words.items() if prompt.endswith(end)), "its own")
    return "by model, below" if name.startswith("refcoco") else label


def styles() -> str:
    """A row a style: how it writes one and the same box."""
    rows = [[f"`{name}`", f"`{style.write(*EXAMPLE)}`".replace("|", r"\|")] for name, style in STYLES.items()]
    return markdown_table(
        ["`data.style=`", "left 64, top 48, right 320, bottom 240 of 640 × 480 pixels"], rows, align="ll"
    )


def prompts() -> str:
    """The prompts of models that are asked otherwise, or of questions without options; those of the three sets of
    references are the same."""
    rows = []
    for name in (name for name in BENCHMARKS if name not in ("refcoco_plus", "refcocog")):
        data = defaults(name)
        own = {str(key): str(data.get(key)) for key in ("prompt", "open_prompt") if key in data}
        others = cast(Mapping[str, Mapping[str, str]], data.get("styles", {}))
        asked: dict[str, Mapping[str, str]] = {"": own} if len(own) > 1 or others else {}
        for style, options in {**asked, **others}.items():
            for key, text in options.items():
                shown = text.replace("\n", "⏎")
                rows.append(
                    [f"`{name}`", style or "others", "no options" if key == "open_prompt" else "", f"`{shown}`"]
                )
    return markdown_table(["`data=`", "model", "", "prompt"], rows, align="llll")


if __name__ == "__main__":
    main()
