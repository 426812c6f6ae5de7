"""The cost of one prompt, part by part, dense or under a pruner; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prunekit.components.base import Fusion, LayerWork, Schedule, Scorer
from prunekit.cost.formulas import CONVENTIONS, decode_macs, stack_macs
from prunekit.cost.shapes import ModelShape, Stack, Tower
from prunekit.engine.plan import Plan
from prunekit.errors import PrunekitError, check_choice


class Outlined(Protocol):
    """What the cost of a pruner follows from: a ``Pruner`` is one."""

    scorer: Scorer
    fusion: Fusion
    schedule: Schedule

    def outline(self, depth: int, width: int, mlp_width: int) -> Plan:
        """The plan on a decoder of this shape."""


@dataclass(frozen=True)
class Outline:
    """What a pruner does with one prompt, layer by layer.

    Attributes:
        tokens: all tokens that each decoder layer processes.
        visual: the visual ones among them.
        evidence: for each cut, the layers that are scored for it.
        cut_layers: layers before which tokens go.
    """

    tokens: tuple[int, ...]
    visual: tuple[int, ...]
    evidence: tuple[tuple[int, ...], ...] = ()
    cut_layers: tuple[int, ...] = ()


PARTS = ("vision", "projector", "prefill", "scorer", "lm_head", "decode")


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of a batch, each part apart; ``flops`` of a part are twice as many.

    Attributes:
        convention: the formula of the encoder's and decoder's layers; the other parts are plain matrix products.
        vision, projector: None where the layout of the vision encoder is not known.
        prefill: the decoder's layers over the prompt.
        scorer: what scores the visual tokens, 0 for a dense run.
        lm_head: of the prompt's last token.
        decode: the steps that follow, LM head included.
        kv_bytes: keys and values that are stored after the prefill.
        tokens_per_layer: tokens of one sample that each decoder layer processes.
    """

    convention: str
    vision: float | None
    projector: float | None
    prefill: float
    scorer: float
    lm_head: float
    decode: float
    kv_bytes: int
    tokens_per_layer: tuple[int, ...]

    @property
    def flops(self) -> dict[str, float | None]:
        """FLOPs of each part."""
        macs = {part: getattr(self, part) for part in PARTS}
        return {part: None if count is None else 2 * count for part, count in macs.items()}

    @property
    def total(self) -> float:
        """MACs of all known parts."""
        return sum(flops / 2 for flops in self.flops.values() if flops is not None)


def outline(pruner: Outlined | None, stack: Stack, visual: int, text: int) -> Outline:
    """Tokens of each layer of a decoder for a prompt of ``visual`` visual and ``text`` other tokens.

    Selectors that keep another number than they are asked for (dynamic ratios) count as if they kept that number.

    Raises:
        PrunekitError: for cuts inside the vision encoder, whose cost depends on the encoder.
    """
    if pruner is None:
        return Outline((visual + text,) * stack.layers, (visual,) * stack.layers)
    if "vision" in pruner.schedule.sites:
        name = pruner.schedule.registered_name
        raise PrunekitError(
            f"cost: schedule '{name}' cuts inside the vision encoder; only the decoder's cuts are counted"
        )
    plan, depth = pruner.outline(stack.layers, stack.hidden, stack.mlp_width), stack.layers
    left, counts = visual, []
    for layer in range(depth):
        if layer in plan.cut_layers:
            left = plan.quota(layer, visual, visual + text) if visual else 0
        counts.append(left)
    evidence = tuple(cut.evidence for cut in plan.cuts.values())
    return Outline(tuple(n + text for n in counts), tuple(counts), evidence, plan.cut_layers)


def estimate(
    shape: ModelShape,
    pruner: Outlined | None = None,
    *,
    visual: int,
    text: int,
    convention: str = "exact",
    images: int | None = None,
    frames: int | None = None,
    before: int = 0,
    batch: int = 1,
    decode: int = 0,
    bytes_per_value: int = 2,
) -> Cost:
    """Cost of ``batch`` prompts of ``visual`` visual and ``text`` other tokens, and of ``decode`` steps after them.

    Args:
        pruner: None for the dense model.
        images: images (or tiles) that the visual tokens come from; by default as many as they need.
        frames: frames of the video that the visual tokens come from, in place of ``images``: the encoder sees each,
            however few tokens are made of it.
        before: how many of the ``text`` tokens stand before the first visual one, and are not of the instruction.
        bytes_per_value: of a cached key or value; 2 for bfloat16.

    Raises:
        PrunekitError: for a convention that does not exist, a count below what makes a prompt, or a pruner whose
            schedule does not fit the depth.
    """
    check_choice("convention", convention, CONVENTIONS)
    for name, value, low in (
        ("visual", visual, 0), ("text", text, 0), ("batch", batch, 1), ("decode", decode, 0), ("frames", frames, 1)
    ):  # fmt: skip
        if value is not None and value < low:
            raise PrunekitError(f"cost: {name} must be at least {low}, not {value}")
    stack = shape.text
    plan = outline(pruner, stack, visual, text)
    vision: float | None = None
    projected: float | None = None
    if shape.vision is not None:
        vision, projected = _vision(shape.vision, visual, images, frames, convention)
    head = stack.hidden * shape.vocab
    return Cost(
        convention=convention,
        vision=None if vision is None else batch * vision,
        projector=None if projected is None else batch * projected,
        prefill=batch * stack_macs(stack, plan.tokens, convention),
        scorer=0.0 if pruner is None else batch * _scoring(shape, pruner, plan, text - before),
        lm_head=float(batch * head),
        decode=batch * (decode_macs(stack, plan.tokens, decode, convention) + decode * head),
        kv_bytes=batch * bytes_per_value * stack.kv_entries * _keys(shape, plan.tokens),
        tokens_per_layer=plan.tokens,
    )


def tower_macs(tower: Tower, patches: Sequence[int], convention: str = "exact") -> float:
    """MACs of a vision encoder with its patch embedding, for images of so many ``patches`` each."""
    total, windowed = 0.0, tower.window is not None and convention in ("counter", "exact")
    for count in patches:
        tokens = [count + tower.extra] * tower.stack.layers
        total += stack_macs(tower.stack, tokens, convention, causal=False) + count * tower.patch_weights
        if windowed:  # windows of w patches: n·w pairs instead of n²
            spare = count * (count - min(count, tower.window or count))
            total -= sum(spare * tower.stack.pair_macs(i) for i in range(len(tokens)) if i not in tower.whole)
    return total


def _vision(tower: Tower, visual: int, images: int | None, frames: int | None, convention: str) -> tuple[float, float]:
    """MACs of the encoder and of the projector for ``visual`` tokens out of ``images`` images of equal size, or out of
    ``frames`` frames."""
    count = max(1, tower.images(visual) if images is None else images)
    if frames is not None:
        count = -(-frames // tower.joined)
    each = tower.patches if tower.patches is not None else visual * tower.merge // count
    projected = visual
    if frames is not None and tower.patches is not None:  # a video's tokens are often fewer than what is projected
        projected = count * (tower.frame_vectors or each // tower.merge)
    return tower_macs(tower, [each] * count, convention), float(projected * tower.projector)


def _scoring(shape: ModelShape, pruner: Outlined, plan: Outline, instruction: int) -> float:
    """MACs of the scorer (and of a fusion that multiplies matrices, or looks ahead) on one sample."""
    stack, total = shape.text, 0.0
    scored: dict[int, LayerWork] = {}  # one score serves every later cut
    for cut, layers in zip(plan.cut_layers, plan.evidence, strict=True):
        works = [_work(shape, plan, layer, cut, instruction) for layer in layers]
        if pruner.fusion.needs_full_attention:
            total += pruner.fusion.macs(works, pruner.scorer)
        else:
            scored |= dict(zip(layers, works, strict=True))
        if cut in layers and pruner.scorer.uses_attention:  # its projections run once more, before the cut
            total += works[-1].tokens * stack.hidden * stack.key_width * (stack.heads + 2 * stack.key_heads)
    return total + sum(pruner.scorer.macs(work) for work in scored.values())


def _work(shape: ModelShape, plan: Outline, layer: int, cut: int, instruction: int) -> LayerWork:
    """A layer as it is scored; one that is looked ahead at still sees what is about to go."""
    source = layer - (layer == cut and layer > 0)
    return LayerWork(plan.tokens[source], plan.visual[source], instruction, shape.text.heads, shape.text.key_width)


def _keys(shape: ModelShape, tokens: Sequence[int]) -> int:
    """Tokens whose keys are stored, over all layers that have keys."""
    attends = shape.text.attends or (True,) * len(tokens)
    return sum(n for n, has_keys in zip(tokens, attends, strict=True) if has_keys)
