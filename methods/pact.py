"""PACT: unimportant tokens go without any attention, and the others are clustered by the distance of their keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import prunekit

NOTE = "keys of the visual tokens"


@prunekit.register("scorer", "euti")
@dataclass
class Euti(prunekit.Scorer):
    """PACT: Pruning and Clustering-Based Token Reduction for Faster Visual Language Models (CVPR 2025,
    https://arxiv.org/abs/2504.08966): efficient unimportant tokens identification.

    The mean query of all tokens up to the last visual one attends to their keys, both as they were before the rotary
    embedding; the score is the mean over heads of what a token gets, times the norm of its hidden state.
    """

    uses_attention = uses_unrotated = True

    def score(self, view) -> torch.Tensor:
        keys, visual_BS = view.keys_unrotated.float(), view.visual_mask.to(view.keys.device)
        upto_BS = visual_BS.flip(1).cumsum(1).flip(1).bool() & view.real.to(keys.device)
        query_BHd = (view.queries_unrotated.float() * upto_BS[:, None, :, None]).sum(2)
        query_BHd = query_BHd / upto_BS.sum(1)[:, None, None].clamp(min=1)
        grouped = query_BHd.unflatten(1, (keys.shape[1], -1)) / keys.shape[-1] ** 0.5
        logits_BHS = (grouped @ keys.mT).flatten(1, 2).masked_fill(~upto_BS[:, None], torch.finfo(torch.float32).min)
        norms_BS = view.hidden_states.float().norm(dim=-1).to(keys.device)
        view.notes[NOTE] = view.visual(view.keys.transpose(1, 2).flatten(2))
        return view.visual(logits_BHS.softmax(-1).mean(1) * norms_BS)


@prunekit.register("selector", "dbdpc")
@dataclass
class Dbdpc(prunekit.Selector):
    """PACT's distance-bounded density peaks. Of the best scores those are centres, by falling density, that are farther
    than a cutoff from every centre before them; distance is 1 − cosine of keys after the rotary embedding. All other
    tokens within ``reach`` times the cutoff are assigned to the nearest centre, the rest is lost.

    Args:
        important: share of the standing tokens that are clustered, the best by score; never less than the budget.
        cutoff: fixes it, and the count follows from the image, never above the budget. By default the largest at which
            there are as many centres as the budget says.
        reach: how far the others may be, as a multiple of the cutoff.
    """

    important: float = 0.55
    cutoff: float | None = None
    reach: float = 1.5

    def __post_init__(self) -> None:
        prunekit.check_interval("selector.important", self.important, "(0, 1]")
        if self.cutoff is not None:
            prunekit.check_interval("selector.cutoff", self.cutoff, "[0, 2]")
        if self.reach < 1:
            raise prunekit.PrunekitError(f"selector.reach must be at least 1, not {self.reach}")

    def select(self, view, scores, quota) -> torch.Tensor:
        if NOTE not in view.notes:
            raise prunekit.PrunekitError("selector 'dbdpc' clusters keys that scorer=euti notes: it needs scorer=euti")
        far_BNN = (1 - prunekit.ops.cosine(view.notes[NOTE].to(scores.device))).clamp(min=0)
        kept, target = torch.zeros_like(view.alive), torch.full_like(view.slots, -1)
        share_B = torch.maximum((view.alive.sum(1) * self.important).long(), quota)
        candidates_BN = prunekit.ops.top_k(scores, share_B, view.alive)
        for b, budget in enumerate(quota.tolist()):
            numbers = candidates_BN[b].nonzero()[:, 0]
            far = far_BNN[b][numbers][:, numbers].fill_diagonal_(0)
            order = (-(far / 2).square()).exp().sum(1).argsort(descending=True, stable=True)
            far, numbers = far[order][:, order], numbers[order]
            cutoff = self._cutoff(far, budget) if self.cutoff is None else self.cutoff
            centres = numbers[centres_of(far, cutoff)][:budget]
            kept[b, centres] = True
            distance, nearest = far_BNN[b][:, centres].min(1)
            target[b] = torch.where((distance <= self.reach * cutoff) & view.alive[b], centres[nearest], -1)
        view.notes["assigned"] = target
        return kept

    def _cutoff(self, far: torch.Tensor, budget: int) -> float:
        """The largest cutoff at which there are at least ``budget`` centres, by bisection."""
        low, high = 0.0, 2.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if len(centres_of(far, middle)) >= budget else (low, middle)
        return low if len(centres_of(far, low)) >= budget else -1.0


def centres_of(far: torch.Tensor, cutoff: float) -> list[int]:
    """Of points in the order of their density, distances [n, n] between them, those that become centres."""
    near, free, centres = (far <= cutoff).cpu(), torch.ones(len(far), dtype=torch.bool), []
    while free.any():
        point = int(free.int().argmax())
        centres.append(point)
        free &= ~near[point]
        free[point] = False
    return centres


prunekit.compose(
    "pact",
    scorer="euti",
    fusion="ahead",
    schedule={"name": "one_shot", "layer": 4},
    selector="dbdpc",
    reducer={"name": "assigned", "proportional": True},
    positions="keep",
)
