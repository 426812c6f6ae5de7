"""IVTP's own mechanism, as a third party describes it: groups of layers, rollout, chosen instruction words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit


@prunekit.register("scorer", "chosen_words")
@dataclass
class ChosenWords(prunekit.ReceivedAttention):
    """IVTP: Instruction-guided Visual Token Pruning for Large Vision-Language Models (ECCV 2024,
    https://doi.org/10.1007/978-3-031-72643-9_13), the stage in the LLM.

    Known here only through a third-party note, and not checked against the paper. Of the instruction those tokens count
    that resemble the image; the mean of their rows ranks the visual tokens. Where the note leaves a choice open it is
    an option. Without a CLIP text tower similarity is the cosine of what enters layer 0: a text token's embedding to
    the mean of the sample's visual tokens, which stands in for the visual CLS.

    Args:
        threshold: tokens above this cosine are chosen; by default the mean over the sample's instruction. Where none
            is above it, all are.
        heads: "mean" or "max" over heads; fusion ``rollout`` has already taken the mean.
    """

    threshold: float | None = None
    heads: str = "mean"

    sites = ("vision", "decoder")

    def chosen_queries(self, view) -> torch.Tensor | str:
        if (
            view.site == "vision"
        ):  # the stage in the encoder reads the CLS row; without a CLS token those of all patches
            return "cls" if view.has_cls else "visual"
        chosen = view.once("chosen_words", lambda: self.choose(view.inputs_embeds, view.layout))
        return view.in_layer(chosen.to(view.layout.text.device)) & view.real

    def choose(self, embeds: torch.Tensor, layout) -> torch.Tensor:
        """The chosen tokens of the dense sequence, bool [B, S], from what entered layer 0, [B, S, D]."""
        text, exists = layout.text.to(embeds.device), layout.exists.to(embeds.device)
        visual_BND = prunekit.ops.gather_tokens(embeds.float(), layout.visual_index) * exists[..., None]
        image_B1D = visual_BND.sum(1, keepdim=True) / exists.sum(1).clamp(min=1)[:, None, None]
        cosine_BS = torch.cosine_similarity(embeds.float(), image_B1D, dim=-1) * text
        bar = cosine_BS.sum(1, keepdim=True) / text.sum(1, keepdim=True).clamp(min=1)
        chosen = text & (cosine_BS > (bar if self.threshold is None else self.threshold))
        return torch.where(chosen.any(1, keepdim=True), chosen, text)


@prunekit.register("schedule", "groups")
@dataclass
class Groups(prunekit.Schedule):
    """A cut at the end of each group of layers, none inside one (IVTP, ECCV 2024, see scorer ``chosen_words``).

    Args:
        size: layers of a group (3 was best).
        within: groups end within the first so many layers.
        vision: whether the encoder is cut as well, inside the last block of each group: half of the way to the keep
            ratio (in logarithms) goes there, in equal steps.
        ratios: share that each cut leaves of what stood before it; equal steps by default (the note does not say).
    """

    size: int = 3
    within: int = 12
    vision: bool = False
    ratios: list[float] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.within:
            raise prunekit.PrunekitError(
                f"schedule.size must lie in 1..{self.within} (schedule.within), not {self.size}"
            )
        if self.vision and 0 in (self.ratios or ()):
            raise prunekit.PrunekitError("schedule.ratios: with cuts in the encoder (schedule.vision) none may be 0")
        self.sites = ("vision", "decoder") if self.vision else ("decoder",)

    def cuts(self, depth: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        ends = [layer for layer in range(self.size, self.within + 1, self.size) if layer < depth]
        if not ends:
            raise prunekit.PrunekitError(
                f"schedule 'groups': no group of {self.size} layers ends before the last of {depth}"
            )
        steps = prunekit.create("schedule", "progressive", layers=ends, ratios=self.ratios)
        if not self.vision:
            return steps.cuts(depth, keep_ratio)
        first = keep_ratio**0.5
        shares = [first * cut.ratio for cut in steps.cuts(depth, keep_ratio / first)]
        return tuple(prunekit.Cut(end, share) for end, share in zip(ends, [*shares[:-1], keep_ratio], strict=True))

    def vision_cuts(self, blocks: int, patches: int, keep_ratio: float) -> tuple[prunekit.Cut, ...]:
        ends = list(range(self.size - 1, blocks, self.size))
        if not ends:
            raise prunekit.PrunekitError(
                f"schedule 'groups': no group of {self.size} blocks ends within the encoder's {blocks}"
            )
        return prunekit.create("schedule", "encoder", layers=ends).vision_cuts(blocks, patches, keep_ratio**0.5)

    def own_ratio(self) -> float | None:
        return None if self.ratios is None else torch.tensor(self.ratios, dtype=torch.float64).prod().item()


prunekit.compose("ivtp_rollout", scorer="chosen_words", fusion="rollout", schedule="groups", positions="keep")
prunekit.compose(
    "ivtp_full",
    scorer="chosen_words",
    fusion="rollout",
    schedule={"name": "groups", "vision": True},
    positions="keep",
)
