"""The options of ``task=bench``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from prunekit.options import Count, CountOrNull, Flag, Options, Seed, Several, Takes, Text, choice

ENGINES = ("transformers", "vllm")


class BenchOptions(Options):
    """What to time: the prompt, and how often."""

    group: ClassVar[str] = "bench"

    engine: choice(ENGINES) = Field("transformers", description="what runs the model")  # type: ignore[valid-type]
    concurrency: Annotated[list[Count], Field(min_length=1), Takes("be a list of counts like [1,8,32]")] = Field(
        [1, 8, 32], description="of bench.engine=vllm: requests under way at a time"
    )
    shape: Text | None = Field(None, description="a named architecture with random weights; null: the configured model")
    visual_tokens: Annotated[list[Count] | None, Field(min_length=1), Takes("be a list of counts like [576,2880]")] = (
        Field(None, description="counts to sweep; null: what the shape or the model's first example has")
    )
    frames: CountOrNull = Field(None, description="frames of one video, in place of visual_tokens")
    text_tokens: Several = Field(64, description="tokens of the question")
    batch_size: Count = Field(1, description="prompts of a prefill")
    new_tokens: Seed = Field(16, description="decode steps after each prefill")
    rounds: Count = Field(7, description="timed ones, after one to warm up")
    eager: Flag = Field(True, description="run eager_fastv too")
    profile: Flag = Field(False, description="write profile.txt, the operators of one pruned prefill")
