"""What a server, or one request, asks for: options to a pruner that vLLM can serve, or a refusal in one line.

A server's options come with the model's config, a request's with ``mm_processor_kwargs``:

    {"method": "divprune", "keep_ratio": 0.25}
    {"scorer": "cls", "selector": {"name": "mmr"}, "keep_tokens": 64}

vLLM must know the number of tokens of an image before the encoder runs, and its scheduler counts the same tokens in all
layers. So the one cut is before decoder layer 0, and the count follows from the image's size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.components.video import VideoReducer, VideoScorer, VideoSelector
from prunekit.errors import PrunekitError, UnknownNameError
from prunekit.families import Family, family_of
from prunekit.pruning.planner import ScheduleQuota
from prunekit.pruning.presets import BUDGET, method
from prunekit.pruning.pruner import Pruner
from prunekit.pruning.recipe import component_name
from prunekit.pruning.saving import CONFIG_KEY
from prunekit.registry import KINDS, registry
from prunekit.vllm.cut import ImageCut

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SERVER = ("method", "name", "variant", *KINDS, *BUDGET, "positions")
REQUEST = ("method", "variant", "scorer", "selector", "reducer", "keep_ratio", "keep_tokens")
"""What a request may say. Options of components, which may be paths, are the server's alone."""

REMEMBERED = 256
"""Settings of requests whose pruners a process keeps: making one reads files."""


@dataclass(frozen=True)
class Served:
    """The pruning of a server on one model.

    Attributes:
        family: the model, or a copy of it without weights.
        mrope: whether its positions are triples (M-RoPE).
        options: of the server, None where it serves the dense model.
    """

    family: Family
    mrope: bool
    options: Mapping[str, object] | None = None
    _pruners: dict[str, Pruner] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.options is not None:
            self.pruner(self.options)

    def merged(self, request: object) -> Mapping[str, object] | None:
        """The options of a request that overrides some of the server's; None for the dense model.

        Raises:
            PrunekitError: for what a request must not say.
        """
        return None if request is None else overridden(self.options, check_request(request))

    def pruner(self, options: Mapping[str, object]) -> Pruner:
        """The pruner of merged options.

        Raises:
            PrunekitError: for what is unknown, does not fit, or cannot be served.
        """
        key = json.dumps(options, sort_keys=True)
        if key not in self._pruners:
            if len(self._pruners) >= REMEMBERED:
                self._pruners.clear()
            self._pruners[key] = servable(pruner_of(options), self.family, self.mrope, options)
        return self._pruners[key]


def options_of_config(config: PretrainedConfig, folder: str) -> dict[str, object] | None:
    """A server's options, from its model's config; weights of components stand beside the model in its ``folder``."""
    options = getattr(config, CONFIG_KEY, None)
    if not isinstance(options, dict):
        return options
    options = copy.deepcopy(options)
    for part in options.values():
        if isinstance(part, dict) and isinstance(part.get("weights"), str):
            beside = Path(folder) / part["weights"]
            part["weights"] = str(beside) if beside.is_file() else part["weights"]
    return options


def check_request(request: object) -> Mapping[str, object]:
    """The options of a request, whose components are names.

    Raises:
        PrunekitError: for anything else.
    """
    if not isinstance(request, Mapping):
        raise PrunekitError(f"prunekit: a request's options must be a mapping or null, not {request!r}")
    for key, value in request.items():
        if key not in REQUEST:
            raise UnknownNameError("option of a request:", key, REQUEST)
        if key not in BUDGET and not isinstance(value, str):
            raise PrunekitError(f"prunekit: {key} of a request must be a name, not {value!r}")
    return request


def overridden(server: Mapping[str, object] | None, request: Mapping[str, object]) -> dict[str, object]:
    """The server's options with a request's in their place; a method replaces the server's composition as a whole."""
    options = dict(server or {})
    if "method" in request:
        options = {key: value for key, value in options.items() if key in BUDGET}
    if any(key in request for key in BUDGET):
        options = {key: value for key, value in options.items() if key not in BUDGET}
    return options | dict(request)


def pruner_of(options: Mapping[str, object]) -> Pruner:
    """The pruner that options name. Without a method there is one cut at the input, decided by the cut layer alone.

    Raises:
        PrunekitError: for what is unknown or of the wrong type.
    """
    if not isinstance(options, Mapping):
        raise PrunekitError(f"prunekit: the options must be a mapping, not {options!r}")
    for key in options:
        if key not in SERVER:
            raise UnknownNameError("option of prunekit:", key, SERVER)
    parts: dict[str, Any] = {key: _component(key, value) if key in KINDS else value for key, value in options.items()}
    if (name := parts.pop("method", None)) is not None:
        variant = parts.pop("variant", None)
        return method(str(name), variant=variant, **parts)
    if "variant" in parts:
        raise PrunekitError("prunekit: variant goes with a method")
    parts.setdefault("schedule", "input")
    parts.setdefault("fusion", "single")
    if "scorer" not in parts:
        if "selector" not in parts or not _ignores_scores(parts["selector"]):
            raise PrunekitError("prunekit: say which method, or which scorer")
        parts["scorer"] = "random"
    return Pruner.from_dict(parts, "prunekit")


def _component(kind: str, part: object) -> object:
    """A component by its name or a mapping with one, as ``Pruner.from_dict`` and ``method`` take it."""
    if isinstance(part, str):
        registry.get(kind, part)
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        raise PrunekitError(f"prunekit: {kind} must be a name, or a mapping with one, not {part!r}")
    return dict(part)


def _ignores_scores(part: Any) -> bool:
    name = part if isinstance(part, str) else part["name"]
    return registry.get("selector", name).ignores_scores  # type: ignore[attr-defined]


def servable(pruner: Pruner, family: Family, mrope: bool, options: Mapping[str, object] | None = None) -> Pruner:
    """A pruner with the position ids that vLLM gives: those of the image with M-RoPE, else numbered anew.

    Raises:
        PrunekitError: for a pruner, or a family, that cannot be served; it names the part, and a method that can be.
    """
    options = options or {}
    what = f"method '{pruner.name}'" if pruner.name else "this composition"
    if "vision" in pruner.schedule.sites or [c.layer for c in pruner.schedule.cuts(family.depth, pruner.share)] != [0]:
        raise PrunekitError(_refused_schedule(pruner, what))
    if pruner.budget is not None:
        raise PrunekitError(
            f"budget={pruner.budget} cannot be served: vLLM counts tokens of each image; use keep_ratio"
        )
    if not pruner.selector.exact or pruner.selector.adapts_count:
        name = component_name(pruner.selector)
        raise PrunekitError(
            f"selector '{name}' cannot be served: its count depends on the data, and vLLM must know it before the "
            "encoder runs; use selector=topk"
        )
    if pruner.schedule.adapts_counts:
        name = component_name(pruner.schedule)
        raise PrunekitError(f"schedule '{name}' cannot be served: its counts depend on the data; use schedule=input")
    for part in pruner.components.values():
        if isinstance(part, VideoScorer | VideoSelector | VideoReducer):
            raise PrunekitError(
                f"'{component_name(part)}' cannot be served: it compares frames, and videos are not served"
            )
    if pruner.reducer.proportional_attention:
        name = component_name(pruner.reducer)
        raise PrunekitError(f"reducer '{name}' cannot be served: vLLM's attention takes no weights of tokens")
    if pruner.scorer.uses_regions:
        raise PrunekitError(
            f"scorer '{component_name(pruner.scorer)}' cannot be served: no request says where answers are"
        )
    positions = "keep" if mrope else "renumber"
    asked = options.get("positions")
    if asked not in (None, positions):
        rotary = "M-RoPE" if mrope else "one-dimensional positions"
        raise PrunekitError(f"positions={asked} cannot be served on '{family.model_type}' ({rotary}): use {positions}")
    if not mrope and not family.renumbers:
        raise PrunekitError(f"'{family.model_type}' cannot be served pruned: its positions cannot be numbered anew")
    fitted = pruner.replace(positions=positions)
    fitted.plan(family)
    rehearse(fitted, family)
    return fitted


def rehearse(pruner: Pruner, family: Family) -> None:
    """Cut random tokens, where components read neither encoder nor places: what they raise is then the error of a
    request, and not the end of an engine.

    Raises:
        PrunekitError: for a component that reads the prompt without saying so, and answers that do not fit.
    """
    if pruner.needs_pixels or reads_question(pruner):
        return
    rows, columns = family.grid or (6, 6)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(rows * columns, family.text_config.hidden_size, generator=random, device="cpu")
    with torch.inference_mode():
        ImageCut(pruner, family)(tokens)


def _refused_schedule(pruner: Pruner, what: str) -> str:
    name, sites = component_name(pruner.schedule), set(pruner.schedule.sites)
    where = "the vision encoder" if "vision" in sites else "the decoder"
    if name == "one_shot" and (pruner.selector.ignores_scores or pruner.scorer.draws):
        nearest = 'add "schedule": "input"'
    elif "vision" in sites:
        nearest = "the nearest that can be is 'fastervlm'"
    else:
        nearest = "the nearest that can be are 'cdpruner', which reads the question, and 'divprune', which does not"
    return f"{what} cannot be served: schedule '{name}' cuts inside {where}, vLLM before the decoder; {nearest}"


def kept(pruner: Pruner, family: Family, visual: int) -> int:
    """How many of an image's ``visual`` tokens stay."""
    return ScheduleQuota(pruner.schedule, family.depth, pruner.share, pruner.keep_tokens)(0, visual, visual)


def reads_question(pruner: Pruner) -> bool:
    """Whether what stays of an image depends on the prompt, so that vLLM must not take it from another prompt."""
    drawn = pruner.scorer.draws and not pruner.selector.ignores_scores
    return drawn or any(part.reads_question for part in pruner.components.values())


def outline_family(config: PretrainedConfig, trust_remote_code: bool = False) -> Family:
    """The family of a model by its config alone: a copy of it without weights.

    Raises:
        PrunekitError: for a model that is no LVLM, or of a family that cannot be pruned.
    """
    from transformers import AutoModelForImageTextToText

    config = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrunekitError(f"model type '{config.model_type}' cannot be served pruned: {reason}") from None
    return family_of(model)
