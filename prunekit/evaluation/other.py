"""Whose question chose the tokens: a question answered with what another question about the same image would keep, or
with what is left of a dialogue's first question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.components.base import Scorer
from prunekit.data.example import Example
from prunekit.data.source import Examples, gather
from prunekit.engine.caller import PromptMarks
from prunekit.errors import PrunekitError, check_choice
from prunekit.evaluation.regions import regions_for
from prunekit.pruning.pruner import PrunedBlock, Pruner
from prunekit.views.layer import LayerView, Regions

if TYPE_CHECKING:
    from prunekit.evaluation.batches import Batcher

EVIDENCE = ("own", "other", "first")


def with_evidence(evidence: str, pruner: Pruner, examples: Iterable[Example]) -> tuple[Pruner, Iterable[Example]]:
    """The pruner and the examples of a run whose tokens are chosen by the example's ``own`` question (and the turns
    before it), by the ``first`` of its dialogue, or by that of an ``other`` example about the same images; examples
    that have no such other are left out, and that is said.

    Raises:
        PrunekitError: where a pruner cuts outside the decoder's layers, or no image has two questions.
    """
    check_choice("eval.evidence", evidence, EVIDENCE)
    if evidence == "own":
        return pruner, examples
    if evidence == "first":
        return FirstQuestion(**_parts(pruner), **_settings(pruner)), examples
    if not isinstance(examples, Sequence):
        if getattr(examples, "limit", None) is None:
            raise PrunekitError("eval.evidence=other needs all examples at hand, not a stream: set data.limit")
        source, examples = examples, gather(examples)  # type: ignore[arg-type]  # a Source
        if unusable := sum(1 for example in source if example.error):
            print(f"eval.evidence=other: {unusable} unusable rows left out")
    partners = partners_of(examples)
    kept = Examples((e for e in examples if e.id in partners), getattr(examples, "metric", "exact"))
    if not kept:
        raise PrunekitError("eval.evidence=other: no image of the data has two different questions")
    if len(kept) < len(examples):
        print(f"eval.evidence=other: {len(examples) - len(kept)} examples left out, alone with their image")
    return OtherQuestion(pruner, partners), kept


def partners_of(examples: Sequence[Example]) -> dict[str, Example]:
    """For each example, by id, the next one about the same images that asks something else, going round."""
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.image_ids].append(example)
    found = {}
    for group in groups.values():
        for place, example in enumerate(group):
            others = [o for o in group[place + 1 :] + group[:place] if o.question != example.question]
            if others:
                found[example.id] = others[0]
    return found


@dataclass
class Replay(Scorer):
    """Scores that were made elsewhere, for one batch and each cut: by the cut's layer, [B, N]."""

    scores: dict[int, torch.Tensor]

    sites = ("decoder",)

    def score(self, view: LayerView) -> torch.Tensor:
        return self.scores[view.layer + 1].to(view.hidden_states.device)


class OtherQuestion(Pruner):
    """A pruner whose scores come from a prefill of another example about the same images.

    Cuts, counts, selector and reducer are the pruner's own; only the question that is looked at is another's.
    """

    partners: Mapping[str, Example]

    def __init__(self, pruner: Pruner, partners: Mapping[str, Example]) -> None:
        if set(pruner.schedule.sites) != {"decoder"}:
            raise _not_between(pruner)
        super().__init__(**_parts(pruner), **_settings(pruner))
        vars(self)["partners"] = partners

    def replace(self, **changes: object) -> OtherQuestion:
        return OtherQuestion(Pruner(**_parts(self), **_settings(self)).replace(**changes), self.partners)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "evidence": "other"}

    def for_batch(self, batcher: Batcher, batch: Sequence[Example]) -> Pruner:
        """The pruner of one batch: prefills its partners and keeps the scores."""
        others = [self.partners[example.id] for example in batch]
        inputs, model = batcher.inputs(others, self), batcher.loaded.model
        with torch.inference_mode(), self(model, regions_for(self, others)) as trace:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        if any(cut.layer == 0 for cut in trace.cuts):
            raise _not_between(self)
        replay = Replay({cut.layer: cut.scores for cut in trace.cuts})
        return Pruner(**{**_parts(self), "scorer": replay, "fusion": "single"}, **_settings(self))


class FirstQuestion(Pruner):
    """A pruner that hears no more than the first question of a dialogue, as on one cache: what goes for it is gone for
    those that follow.

    A prefill of all turns whose prompt ends with the first question leaves the cache that turn after turn would leave:
    layers before a cut hold all visual tokens for every turn, layers behind it what the first question kept.

    Attributes:
        marks: the first turn among the tokens of a batch, bool [B, S].
    """

    marks: torch.Tensor | None = None

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "evidence": "first"}

    def for_batch(self, batcher: Batcher, batch: Sequence[Example]) -> Pruner:
        """The pruner of one batch, which knows where its first turns end."""
        mask, ids = (batcher.encoded(batch)[name] for name in ("attention_mask", "input_ids"))
        firsts = [replace(e, question=e.history[0][0], history=()) if e.history else e for e in batch]
        marks = torch.zeros_like(mask, dtype=torch.bool)
        for row, first in enumerate(firsts):
            turn = batcher.encoded([first])["input_ids"][0]
            places = mask[row].nonzero()[: len(turn), 0]
            if not torch.equal(ids[row, places], turn):
                raise PrunekitError(
                    f"eval.evidence=first: in '{batch[row].id}' the chat template writes the first turn otherwise once "
                    "others follow, so no cache could go on from it"
                )
            marks[row, places] = True
        bound = self.replace()
        vars(bound)["marks"] = marks
        return bound

    def __call__(
        self,
        model: nn.Module,
        regions: Regions | None = None,
        *,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
    ) -> PrunedBlock:
        return super().__call__(model, regions, prompt=self.marks if prompt is None else prompt, visual=visual)


def _not_between(pruner: Pruner) -> PrunekitError:
    name = pruner.name or pruner.schedule.registered_name
    return PrunekitError(f"eval.evidence=other replays cuts between decoder layers; '{name}' has another")


def for_batch(pruner: Pruner, batcher: Batcher, batch: Sequence[Example]) -> Pruner:
    """The pruner of one batch: the same for every batch, unless other questions choose."""
    return pruner.for_batch(batcher, batch) if isinstance(pruner, OtherQuestion | FirstQuestion) else pruner


def _parts(pruner: Pruner) -> dict[str, Any]:
    return dict(pruner.components)


def _settings(pruner: Pruner) -> dict[str, Any]:
    share = {"keep_ratio": pruner.keep_ratio, "keep_tokens": pruner.keep_tokens, "budget": pruner.budget}
    given = {key: value for key, value in share.items() if value is not None}
    return {**given, "positions": pruner.positions, "name": pruner.name}
