"""The Pruner: a recipe, applied to a model by hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.engine.caller import PromptMarks
from prunekit.engine.encoder_session import EncoderSession
from prunekit.engine.plan import Plan
from prunekit.engine.session import Session, holder
from prunekit.errors import PrunekitError
from prunekit.families import Family, family_of, make_family
from prunekit.families.vision import timm_tower
from prunekit.families.wrappers import is_timm, unwrap
from prunekit.pruning import planner, saving
from prunekit.pruning.recipe import Recipe
from prunekit.views.layer import Regions
from prunekit.views.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Pruner(Recipe):
    """A pruning method: which visual tokens stay, decided where, by what evidence.

    Args:
        scorer, fusion, schedule, selector, reducer: a registered name, or a component.
        keep_ratio: share of the original visual tokens that stays after the last cut, in (0, 1]; 0.5 by default.
            0 where the schedule withdraws all.
        keep_tokens: the same as a count per sample; excludes ``keep_ratio``.
        budget: a target for the cost instead of either, "flops:0.5", "mean_tokens:192" or "final:64" (``Budget``).
        positions: "keep" leaves the kept tokens their position ids, "renumber" closes the gaps.
        name: the published method this is, if it is one.

    Raises:
        PrunekitError: (a ValueError) for unknown names and impossible options, here; for what a model cannot do, at
            ``apply``.
    """

    def plan(self, family: Family) -> Plan:
        """What the engine is to do on a model; raises for a layer past its depth and the like."""
        return planner.plan(self, family)

    def outline(self, depth: int, width: int, mlp_width: int) -> Plan:
        """The plan on a decoder of which only the shape is known: layers, hidden width, width of its MLPs."""
        return planner.outline(self, depth, width, mlp_width)

    def apply(
        self,
        model: nn.Module,
        regions: Regions | None = None,
        *,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
    ) -> Handle:
        """Prune every prefill of ``model`` until the handle is removed. Applying twice is an error.

        Args:
            regions: where the answer of each sample of the batches to come is, for a scorer that asks (``oracle``):
                boxes (x0, y0, x1, y1) as fractions of the upright image, as the model sees it.
            prompt: what of the batches to come is prompt, bool [B, S], where other tokens follow it that must not
                choose what stays, such as a candidate answer; "all" if nothing does. ``generate`` and labels say it by
                themselves.
            visual: where the visual tokens stand, bool [B, S], for a model that is given ``inputs_embeds``.

        Raises:
            PrunekitError: for a model that is pruned already, or cannot be pruned so; it names the module.
        """
        if is_timm(inner := unwrap(model)):
            if prompt is not None or visual is not None:
                raise PrunekitError("prompt and visual mark tokens of a language model; an encoder alone has none")
            tower = timm_tower(inner)
            session: Session | EncoderSession = EncoderSession(planner.plan_encoder(self, tower), tower, inner)
        else:
            family = family_of(model)
            session = Session(self.plan(family), family, regions=regions, prompt=prompt, visual=visual)
        session.install()
        return Handle(session)

    def __call__(
        self,
        model: nn.Module,
        regions: Regions | None = None,
        *,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
    ) -> PrunedBlock:
        """``with pruner(model) as trace:`` prunes inside the block and leaves the model as it was; see ``apply``."""
        return PrunedBlock(lambda: self.apply(model, regions, prompt=prompt, visual=visual))

    def save(
        self, folder: str | Path, model: PreTrainedModel | str | Path | None = None, processor: Any = None
    ) -> None:
        """Write ``pruner.yaml`` to a folder, and fusion weights beside it.

        Args:
            model: a loaded model, or the folder of one, to be written there too, so that vLLM serves the folder pruned
                (docs/serving.md).
            processor: of a loaded model; by default that of where it came from.
        """
        if model is None:
            saving.save(self, Path(folder))
        else:
            saving.save_served(self, Path(folder), model, processor)

    @classmethod
    def load(cls, folder: str | Path) -> Pruner:
        """The pruner that ``save`` wrote to a folder."""
        return cls(**saving.load(Path(folder)))

    @classmethod
    def from_dict(cls, data: Mapping[str, object], where: str = "pruner") -> Pruner:
        """From plain data as ``describe`` gives it: a component is a name, or a mapping of ``name`` and options.

        Raises:
            PrunekitError: that names ``where`` the data stand, for unknown entries and components without a name.
        """
        return cls(**saving.options_of(data, where))


class Handle:
    """A pruner on a model: ``trace`` of the latest prefill, ``remove()`` to take it off."""

    def __init__(self, session: Session | EncoderSession) -> None:
        self._session = session

    @property
    def trace(self) -> Trace:
        """What happened in the latest prefill."""
        return self._session.trace

    @property
    def prompt(self) -> PromptMarks | None:
        """What of the next batch is prompt; see ``Pruner.apply``."""
        return self._decoder_session.prompt

    @prompt.setter
    def prompt(self, marks: PromptMarks | None) -> None:
        self._decoder_session.prompt = marks

    @property
    def visual(self) -> torch.Tensor | None:
        """Where the visual tokens of the next batch stand; see ``Pruner.apply``."""
        return self._decoder_session.visual

    @visual.setter
    def visual(self, marks: torch.Tensor | None) -> None:
        self._decoder_session.visual = marks

    @property
    def _decoder_session(self) -> Session:
        if not isinstance(self._session, Session):
            raise PrunekitError("prompt and visual mark tokens of a language model; an encoder alone has none")
        return self._session

    @property
    def plan(self) -> Any:
        """The schedule as resolved on this model: a ``Plan``, or an ``EncoderPlan`` for an encoder alone."""
        return self._session.plan

    def remove(self) -> None:
        """Leave the model as it was before ``apply``; a second call does nothing. Raises if the latest prefill's scores
        were NaN and that could not be said yet."""
        self._session.remove()
        if isinstance(self._session, Session):
            self._session.check_answers()


class PrunedBlock:
    """The context that ``pruner(model)`` returns."""

    def __init__(self, apply: Callable[[], Handle]) -> None:
        self._apply = apply
        self._handles: list[Handle] = []

    def __enter__(self) -> Trace:
        self._handles.append(self._apply())
        return self._handles[-1].trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        handle = self._handles.pop()
        if kind is None:
            handle.remove()
        else:
            handle._session.remove()


def remove(model: nn.Module) -> None:
    """Take the pruner off a model, where its handle is lost. A model without one is left as it is."""
    inner = unwrap(model)
    core = inner if is_timm(inner) else make_family(inner).core
    if (session := holder(core)) is not None:
        session.remove()
