"""Prints one line a family: ``python tests/support/zoo/check.py [names]``."""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo

PIXELS = ("pixel_values", "pixel_values_videos", "flattened_patches", "pixel_values_images", "image_patches")


def moved(model: torch.nn.Module, batch: zoo.Batch, dense: torch.Tensor) -> float:
    """How far the last position's logits of any sample move when the pictures become noise."""
    inputs = dict(batch.inputs)
    for key, value in inputs.items():
        if key in PIXELS and torch.is_tensor(value):
            generator = torch.Generator().manual_seed(99)
            inputs[key] = torch.randn(value.shape, generator=generator)
            if key == "flattened_patches":  # the first two say where the patch is
                inputs[key][..., :2] = value[..., :2]
    with torch.no_grad():
        other = model(**inputs).logits
    return float((other - dense)[:, -1].abs().max(1).values.min())


def generate(model: torch.nn.Module, batch: zoo.Batch) -> torch.Tensor:
    """Logits of three greedy steps [B, 3, V]."""
    out = model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, output_logits=True,
                         return_dict_in_generate=True)  # fmt: skip
    return torch.stack(out.logits, 1)


def check(name: str, long: bool = False) -> str:
    """Everything the zoo promises of a family, in a line; what fails is named there."""
    start = time.perf_counter()
    model = zoo.build(name, zoo.SUPPORTS[name][-1])
    seconds = time.perf_counter() - start
    other = zoo.build(name, "eager") if len(zoo.SUPPORTS[name]) > 1 else None
    said, faults = [], []
    dense: dict[tuple[str, str], torch.Tensor] = {}
    places = [(padding, variant) for variant in zoo.variants(name) for padding in ("none", "left", "right")]
    effect = widest = 0.0
    for padding, variant in places:
        try:
            batch = zoo.batch(name, padding, variant=variant)
            mask = batch.inputs.get("attention_mask", torch.ones_like(batch.inputs["input_ids"])).bool()
            counts = batch.visual.sum(1).tolist()
            with torch.no_grad():
                logits = dense[padding, variant] = model(**batch.inputs).logits
                again = other(**batch.inputs).logits if other else logits
            size = logits.shape[1]
            assert size == mask.shape[1], f"{size} logits for {mask.shape[1]} tokens"
            assert logits[mask].isfinite().all(), "logits not finite"
            apart = float((again - logits)[mask].abs().max())
            widest = max(widest, apart)
            if apart > 1e-4:
                faults.append(f"{variant}/{padding}: eager and sdpa differ by {apart:.1e}")
            if variant == "plain" and padding == "none":
                effect = moved(model, batch, logits)
                said.append(f"visual {counts} of {size}")
                with torch.no_grad():
                    twin = zoo.build(name, zoo.SUPPORTS[name][-1])(**zoo.batch(name).inputs).logits
                if not torch.equal(twin, logits):
                    faults.append(f"not deterministic: {float((twin - logits).abs().max()):.1e}")
            elif variant == "plain" or long:
                said.append(f"{variant}/{padding} {counts}")
            if padding != "right":
                steps = generate(model, batch)
                assert steps[:, -1].isfinite().all(), "generate: logits not finite"
                if padding == "none":
                    gap = float((steps[:, 0] - logits[:, -1]).abs().max())
                    if gap > 1e-4:
                        faults.append(f"{variant}: forward and first step differ by {gap:.1e}")
        except Exception as error:
            if long:
                traceback.print_exc()
            faults.append(f"{variant}/{padding}: {type(error).__name__} {' '.join(str(error).split())[:160]}")
    if effect < 1e-2:
        faults.append("pictures do not move the logits")
    scale = float(dense["none", "plain"].abs().max()) if ("none", "plain") in dense else 0.0
    verdict = "FAULT " + " # ".join(faults) if faults else "ok"
    variants = ",".join(zoo.variants(name)[1:])
    figures = f"{seconds:.2f} s, effect {effect:.3f} of {scale:.1f}, eager to sdpa {widest:.0e}"
    return f"{name}: {figures}, {'; '.join(said)} | {variants} | {verdict}"


def main() -> None:
    """Check the families named, or all."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    long = "-v" in sys.argv
    bad = 0
    for name in [a for a in sys.argv[1:] if a != "-v"] or zoo.NAMES:
        try:
            line = check(name, long)
        except Exception as error:
            if long:
                traceback.print_exc()
            line = f"{name}: FAULT build: {type(error).__name__} {' '.join(str(error).split())[:300]}"
        bad += "FAULT" in line
        print(line, flush=True)
    print(f"{bad} with faults")


if __name__ == "__main__":
    main()
