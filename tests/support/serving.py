"""Both sides of a comparison: transformers with prunekit, and vLLM's engine in this process."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
NEEDS_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="make test-vllm has vLLM")
FOLDER = {"options": "those of the folder's config"}


@dataclass(frozen=True)
class Request:
    """A prompt with its pictures, as the processor's text has it."""

    text: str
    pictures: Sequence[Image.Image]


@dataclass
class Answer:
    """Token ids, the log-probability of each, and what stayed of the images, by number, in the order of their cuts."""

    ids: list[int]
    logprobs: list[float]
    kept: list[list[int]] = field(default_factory=list)


class Reference:
    """A model under transformers. Made before any engine: vLLM puts its own class over decoders that it has run."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        type(self.model.get_decoder()).do_not_compile = True  # vLLM's class asks for it

    def answer(self, request: Request, pruner: Any = None, tokens: int = 6) -> Answer:
        """Greedy decoding of one request."""
        inputs = self.processor(images=list(request.pictures) or None, text=request.text, return_tensors="pt")
        with pruner(self.model) if pruner is not None else contextlib.nullcontext() as trace:
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, output_logits=True,
                                      return_dict_in_generate=True)  # fmt: skip
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = torch.stack(out.logits)[:, 0].float().log_softmax(-1)
        kept = [] if trace is None else [trace.cuts[-1].kept[0].nonzero()[:, 0].tolist()]
        return Answer(ids, [float(rows[i, token]) for i, token in enumerate(ids)], kept)


class Engine:
    """vLLM's engine on a folder, with prunekit's options as the server's, or (``FOLDER``) those in its config."""

    def __init__(self, folder: Path, options: Mapping[str, object] | None, **settings: Any) -> None:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        defaults: dict[str, Any] = dict(
            dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8, block_size=32, seed=0,
            limit_mm_per_prompt={"image": 3},
        )  # fmt: skip
        if options != FOLDER:
            overrides = {"architectures": ["PrunekitForConditionalGeneration"], "prunekit": options}
            defaults["hf_overrides"] = overrides
        self.llm = LLM(model=str(folder), **{**defaults, **settings})

    def answers(
        self, requests: Sequence[Request], options: Sequence[object] | None = None, tokens: int = 6
    ) -> list[Answer]:
        """Greedy decoding of requests in one batch; ``options`` are the requests' own, "server" for none."""
        from vllm import SamplingParams

        prompts: list[Any] = []
        for number, request in enumerate(requests):
            prompt: dict[str, Any] = {"prompt": request.text}
            if request.pictures:
                prompt["multi_modal_data"] = {"image": list(request.pictures)}
            own = "server" if options is None else options[number]
            if own != "server":
                prompt["mm_processor_kwargs"] = {"prunekit": own}
            prompts.append(prompt)
        sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=0)
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        return [
            Answer(
                list(output.outputs[0].token_ids),
                [step[token].logprob for step, token in
                 zip(output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)],
            )
            for output in outputs
        ]  # fmt: skip

    def close(self) -> None:
        """Free what the engine holds."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()


@contextlib.contextmanager
def engine(folder: Path, options: Mapping[str, object] | None, **settings: Any) -> Iterator[Engine]:
    """An engine for a while."""
    running = Engine(folder, options, **settings)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def kept_sets() -> Iterator[list[list[int]]]:
    """What stays of the images that are cut meanwhile, in their order; rehearsals of options do not count."""
    from prunekit.vllm.model import PrunekitForConditionalGeneration as Served

    kept: list[list[int]] = []
    plain = Served._cut

    def noting(self: Served, options: Mapping[str, object]) -> Any:
        cut = plain(self, options)

        class Noting:
            watching = staticmethod(cut.watching)

            def __call__(self, *args: Any) -> Any:
                tokens, index = cut(*args)
                kept.append(index.tolist())
                return tokens, index

        return Noting()

    Served._cut = noting  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        Served._cut = plain  # type: ignore[method-assign]


def check_same(served: Sequence[Answer], expected: Sequence[Answer], tolerance: float = 1e-4) -> None:
    """Same ids, up to where one of them ended, and log-probabilities."""
    for number, (a, b) in enumerate(zip(served, expected, strict=True)):
        size = min(len(a.ids), len(b.ids))
        assert size and a.ids[:size] == b.ids[:size], f"request {number}: {a.ids} served, {b.ids} expected"
        apart = max(abs(x - y) for x, y in zip(a.logprobs[:size], b.logprobs[:size], strict=True))
        assert apart <= tolerance, f"request {number}: log-probabilities differ by {apart:.1e}"
