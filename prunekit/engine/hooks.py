"""The hooks: a session watches one model, removes visual tokens in its prefills and keeps its decode steps in step.

Data flow of a prefill: the core model's pre-hook finds the visual tokens (``Layout``) and opens a ``Prefill``; each
decoder layer's pre-hook cuts if a cut is due, then hands the layer the compact sequence with rotary embeddings and
masks to match; the attention tap of a layer below a cut turns its q and k into evidence; the last layer's hook
scatters what is left back to the dense shape; the core's hook seals the cache layers and publishes the trace.
A decode step only rewrites the mask of layers whose cache is sealed.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.engine.cache import PrunedLayerMixin, check_cache, holds_keys, seal
from prunekit.engine.layout import Layout, Stage, take
from prunekit.engine.masks import decode_mask, prefill_mask, shared_mask, take_columns
from prunekit.engine.rows import AttentionInputs
from prunekit.engine.state import CutRecord, Prefill, Trace, gather_argument
from prunekit.errors import PrunekitError
from prunekit.families import Family, family_of

if TYPE_CHECKING:
    from prunekit.pruner import Plan, Pruner

ATTENTION_NAME = "prunekit"
"""The private name under which the attention tap stands in transformers' attention interface."""

_taps: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = weakref.WeakKeyDictionary()
_pruned: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()


def _tapped_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Entry of the attention interface: only modules that a session tapped carry its name, each finds its own tap."""
    return _taps[module](module, *args, **kwargs)


def _register_tap() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _tapped_attention)


class Session:
    """One pruner applied to one model, from ``install`` to ``remove``. All per-forward state is thread-local."""

    def __init__(self, pruner: Pruner, model: nn.Module) -> None:
        self.pruner = pruner
        self.family: Family = family_of(model)
        self.plan: Plan = pruner.plan(self.family)
        self.trace = Trace()
        self._local = threading.local()
        self._handles: list[Any] = []
        self._configs: list[tuple[nn.Module, Any]] = []

    def inside(self) -> bool:
        """Whether the calling thread is in a forward pass of this session's model."""
        return getattr(self._local, "depth", 0) > 0

    @property
    def _adjusts(self) -> bool:
        """Whether the family corrects queries, so that every layer from the cut on is tapped."""
        return type(self.family).adjust_query is not Family.adjust_query

    def install(self) -> None:
        """Put the hooks on. A model that another pruner holds is refused; a failure leaves the model untouched."""
        core = self.family.core
        if (held := _pruned.get(core)) is not None and held() is not None:
            raise PrunekitError(f"{type(self.family.model).__name__} is pruned already: remove that pruner first")
        try:
            _pruned[core] = weakref.ref(self)
            self._handles.append(core.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
            for index, layer in enumerate(self.family.layers):
                hook = self._layer_hook(index)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
            for layer in self.family.layers if self.family.touches_hidden_between_layers else self.family.layers[-1:]:
                self._handles.append(layer.register_forward_hook(self._to_dense))
            self._handles.append(core.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
            if (embeddings := self.family.input_embeddings) is not None:
                self._handles.append(embeddings.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            if (decoder := self.family.decoder) is not core:
                self._handles.append(decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
            _register_tap()
            adjusted = range(self.plan.first_layer, self.family.depth) if self._adjusts else ()
            evidence = self.plan.evidence_layers if self.pruner.scorer.uses_attention else ()
            for index in sorted({*adjusted, *evidence}):
                self._tap(index)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take everything off again; the model is as before. Idempotent."""
        for handle in self._handles:
            handle.remove()
        for module, config in self._configs:
            module.config = config  # type: ignore[assignment]
            _taps.pop(module, None)
        self._handles, self._configs = [], []
        if (held := _pruned.get(self.family.core)) is not None and held() is self:
            del _pruned[self.family.core]

    # -- the attention tap ---------------------------------------------------------------------------------------

    def _tap(self, index: int) -> None:
        """Route one layer's attention through ``_observe``: its module gets a config of its own with our name in it,
        so the model's config, and whoever shares it, keep theirs."""
        module, original = self.family.attentions[index], self.family.attention_function(index)
        own = copy.copy(module.config)
        own._attn_implementation_internal = ATTENTION_NAME  # type: ignore[union-attr]
        self._configs.append((module, module.config))

        def tap(
            module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            state = self._prefill()
            if state is not None and state.stage.index is not None:
                query = self.family.adjust_query(index, query, state.stage.index)
            if state is not None and index in self.plan.evidence_layers and self.pruner.scorer.uses_attention:
                self._observe(state, index, module, query, key, mask, kwargs)
            return original(module, query, key, value, mask, **kwargs)

        _taps[module] = tap
        module.config = own  # type: ignore[assignment]

    def _observe(
        self,
        state: Prefill,
        index: int,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: Any,
        kwargs: dict[str, Any],
    ) -> None:
        if state.hidden is None or index in state.views or index in state.scores:
            return  # a second pass over the layer (gradient checkpointing) has nothing new
        if (places := self._foreign_keys(index, state)) is not None:
            key = take(key.transpose(1, 2), places).transpose(1, 2)
            mask = None if mask is None else take_columns(mask, places)
        view = state.view(index, state.hidden, self.family.grid)
        view.inputs = AttentionInputs(
            queries=query,
            keys=key,
            mask=mask,
            scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
            causal=bool(
                kwargs["is_causal"] if kwargs.get("is_causal") is not None else getattr(module, "is_causal", True)
            ),
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )
        self._keep_evidence(state, index, view)

    def _keep_evidence(self, state: Prefill, index: int, view: Any) -> None:
        if self.pruner.fusion.joins_views:
            state.views[index] = view
        else:
            state.scores[index] = self._scores(view)

    def _scores(self, view: Any) -> torch.Tensor:
        scores = self.pruner.scorer.score(view)
        if not isinstance(scores, torch.Tensor) or scores.shape != view.alive.shape:
            shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            name = type(self.pruner.scorer).__name__
            raise PrunekitError(
                f"{name}.score returned {shape} at layer {view.layer}, not [B, N] = {tuple(view.alive.shape)}"
            )
        return scores.float()

    # -- prefill -------------------------------------------------------------------------------------------------

    def _prefill(self) -> Prefill | None:
        return getattr(self._local, "prefill", None)

    def _enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        local = self._local
        local.depth = getattr(local, "depth", 0) + 1
        local.prefill, local.decode_memo = None, {}
        input_ids = kwargs.get("input_ids")
        if input_ids is None and args:
            input_ids = args[0]
        if input_ids is None and (noted := getattr(local, "ids", None)) is not None:
            given = kwargs.get("inputs_embeds")
            input_ids = noted if given is not None and noted.shape == given.shape[:2] else None
        cache = kwargs.get("past_key_values")
        fresh = cache is None or cache.get_seq_length() == 0
        if input_ids is None:
            if fresh:
                raise PrunekitError("prunekit finds visual tokens by input_ids; inputs_embeds alone do not show them")
            return
        visual = self.family.find_visual(input_ids, kwargs)
        if not fresh:
            pixels = any("pixel" in name or name == "mm_encoder_outputs" for name, v in kwargs.items() if v is not None)
            if pixels and bool(visual.any()):
                raise PrunekitError("new images on top of a KV cache cannot be pruned: prefill them in one go")
            return
        if cache is not None:
            check_cache(cache)
        layout = Layout.build(input_ids, kwargs.get("attention_mask"), visual)
        if not any(layout.counts):
            raise PrunekitError(f"no visual tokens in the batch: no placeholder {self.family.token_ids} in input_ids")
        local.prefill = Prefill.begin(layout)

    def _note_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._local.ids = args[0] if args else kwargs["input"]

    def _enter_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Layers that share keys may be given the last rows alone; a prefill that is cut needs them all."""
        if self._prefill() is None or not kwargs.get("logits_to_keep"):
            return None
        return args, {**kwargs, "logits_to_keep": 0}

    def _layer_hook(self, index: int) -> Callable[..., Any]:
        ahead = self.plan.first_layer

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            state = self._prefill()
            if state is None and (index < ahead or not self.inside()):
                return None
            # By name, whichever way the model passes them; hidden states stay positional for gradient checkpointing.
            named = {**dict(zip(self.family.layer_arguments, args, strict=False)), **kwargs}
            hidden = named.pop("hidden_states")
            if state is not None:
                return self._prefill_layer(index, state, hidden, named)
            return self._decode_layer(index, hidden, named)

        return hook

    def _prefill_layer(self, index: int, state: Prefill, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        if self.family.touches_hidden_between_layers and state.stage.index is not None:
            hidden = take(hidden, state.stage.index, self.family.token_axis)
        if index in self.plan.cut_layers:
            hidden = self._cut(index, state, hidden)
        state.stages.append(state.stage)
        state.hidden = hidden if index in self.plan.evidence_layers else None
        if state.hidden is not None and not self.pruner.scorer.uses_attention:
            self._keep_evidence(state, index, state.view(index, hidden, self.family.grid))
        if state.stage.index is None:
            return None

        return (hidden,), {name: self._compact(index, name, value, state, hidden) for name, value in kwargs.items()}

    def _compact(self, index: int, name: str, value: Any, state: Prefill, hidden: torch.Tensor) -> Any:
        """A layer's argument as the current stage needs it; made once a stage and shared by its layers."""
        if name != "attention_mask" and not isinstance(value, torch.Tensor | tuple | list | dict):
            return value
        keys = self._key_stage(index, state)
        flags = self.family.takes_padding_mask(index), -1 if keys is None else keys.number
        key = (name, id(value), state.stage.number, flags)
        if key not in state.memo:
            state.memo[key] = (value, self._make_compact(index, name, value, state, hidden))
        return state.memo[key][1]

    def _key_stage(self, index: int, state: Prefill) -> Stage | None:
        """The stage of the keys that a layer borrows from an earlier one, None if they are those of its own stage."""
        source = state.stages[self.family.key_layers[index]]
        return source if source.number != state.stage.number else None

    def _foreign_keys(self, index: int, state: Prefill) -> torch.Tensor | None:
        """Where the slots of the current stage stand among borrowed keys, [B, M]; None for a layer's own keys."""
        source = self._key_stage(index, state)
        return None if source is None else state.stage.slots_in(source, state.layout.real.shape[1])

    def _make_compact(self, index: int, name: str, value: Any, state: Prefill, hidden: torch.Tensor) -> Any:
        stage = state.stage
        assert stage.index is not None
        if name == "attention_mask":
            if value is None and self.family.takes_padding_mask(index):
                return stage.valid
            keys = self._key_stage(index, state)
            if keys is not None:
                size = state.layout.real.shape[1]
                return shared_mask(value, stage, keys, size, self.family.implementation, hidden.dtype)
            return prefill_mask(value, stage, self.family.implementation, hidden.dtype)
        if self.pruner.positions == "renumber" and name in ("position_embeddings", "position_ids"):
            used = torch.ones_like(stage.index) if stage.valid is None else stage.valid.long()
            numbers = (used.cumsum(1) - 1).clamp(min=0)
            return numbers if name == "position_ids" else self.family.rotary(hidden, numbers)  # type: ignore[misc]
        return gather_argument(name, value, stage.index, state.layout.real.shape[1])

    def _cut(self, index: int, state: Prefill, hidden: torch.Tensor) -> torch.Tensor:
        """Decide what stays before layer ``index`` and shorten the sequence to it."""
        layout, pruner = state.layout, self.pruner
        scores = self._fused_scores(index, state, hidden)
        scores = scores.masked_fill(~state.kept, torch.nan)
        counts = [self.plan.keep(index, n) for n in layout.counts]
        lengths = tuple(full - n + k for full, n, k in zip(layout.lengths, layout.counts, counts, strict=True))
        if all(n == k for n, k in zip(layout.counts, counts, strict=True)):
            kept = state.kept
        else:
            keep = torch.tensor(counts, device=hidden.device)
            kept = pruner.selector.select(scores.nan_to_num(nan=-torch.inf), keep, state.kept)
            if not pruner.selector.exact:
                stay = kept.sum(1).tolist()
                lengths = tuple(f - n + k for f, n, k in zip(layout.lengths, layout.counts, stay, strict=True))
        state.cuts.append(CutRecord("decoder", index, kept, scores))
        if lengths == state.stage.lengths:
            return hidden
        if pruner.reducer.changes_tokens:
            hidden = self._reduce(state, kept, hidden)
        return take(hidden, state.shorten(kept, lengths), self.family.token_axis)

    def _fused_scores(self, index: int, state: Prefill, hidden: torch.Tensor) -> torch.Tensor:
        layers = self.plan.evidence[index]
        fusion = self.pruner.fusion
        if fusion.joins_views:
            views = [state.views.pop(layer) for layer in layers]
            return fusion.fuse_views(views, self.pruner.scorer)
        if not layers:
            return self._scores(state.view(index, hidden, self.family.grid))
        found = [state.scores[layer].to(hidden.device) for layer in layers]
        return fusion.fuse(torch.stack(found), layers)

    def _reduce(self, state: Prefill, kept: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Let the reducer change what stays, in place of the kept tokens' hidden states."""
        tokens = take(hidden, state.slots)
        sizes = state.sizes if state.sizes is not None else state.layout.exists.float()
        tokens, state.sizes = self.pruner.reducer.reduce(tokens, sizes, kept, state.kept)
        # Tokens that are gone or pad all point somewhere: send them to an extra slot that is cut off again.
        spare = hidden.shape[1]
        slots = state.slots.masked_fill(~kept, spare)[..., None].expand_as(tokens)
        longer = torch.cat([hidden, hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2])], dim=1)
        return longer.scatter(1, slots, tokens)[:, :spare]

    def _to_dense(self, layer: nn.Module, args: Any, output: Any) -> Any:
        """After the last layer (after each, where the model adds to hidden states between layers): back to the dense
        shape, zeros where tokens are gone."""
        state = self._prefill()
        if state is None or state.stage.index is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        size = state.layout.real.shape[1]
        index = state.stage.index
        if state.stage.valid is not None:
            index = index.masked_fill(~state.stage.valid, size)
        # Padding slots all write to an extra position, which is cut off again.
        axis = self.family.token_axis
        moved = hidden.movedim((axis - 1, axis), (0, 1))
        dense = moved.new_zeros(moved.shape[0], size + 1, *moved.shape[2:])
        places = index.reshape(*index.shape, *[1] * (moved.ndim - 2)).expand_as(moved)
        dense = dense.scatter(1, places, moved)[:, :size]
        dense = dense.movedim((0, 1), (axis - 1, axis))
        return (dense, *output[1:]) if isinstance(output, tuple) else dense

    def _leave(self, core: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """End of a forward pass, also of one that failed (``output`` is None then)."""
        state, local = self._prefill(), self._local
        local.depth, local.prefill, local.decode_memo = local.depth - 1, None, {}
        if state is None or output is None or len(state.stages) < self.family.depth:
            return
        for cut in state.cuts:
            bad = (torch.isnan(cut.scores) & self._standing(state, cut)).any(1)
            if bool(bad.any()):
                raise PrunekitError(
                    f"NaN scores at the cut before layer {cut.layer}, samples {bad.nonzero()[:, 0].tolist()}"
                )
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = output.get("past_key_values") if hasattr(output, "get") else None
        if cache is not None:
            self._seal(cache, state)
        self.trace.cuts = state.cuts
        self.trace.tokens_per_layer = torch.tensor([stage.lengths for stage in state.stages])

    def _seal(self, cache: Any, state: Prefill) -> None:
        """Put pruned layers in place of the cache layers behind a cut, and tell lenders what borrowers must not see."""
        size = state.layout.real.shape[1]
        for index, stage in enumerate(state.stages):
            source = self.family.key_layers[index]
            if stage.index is None or source >= len(cache.layers) or not holds_keys(cache.layers[source]):
                continue
            if source == index:
                seal(cache, index, stage, size, state.layout.lengths, self)
            elif stage.number != state.stages[source].number:
                if not isinstance(cache.layers[source], PrunedLayerMixin):
                    whole = torch.arange(size, device=stage.index.device).expand(len(state.layout.counts), -1)
                    seal(cache, source, Stage(0, whole, None, state.layout.lengths), size, state.layout.lengths, self)
                cache.layers[source].gone[index] = ~stage.present(size)

    @staticmethod
    def _standing(state: Prefill, cut: CutRecord) -> torch.Tensor:
        """Tokens that stood when ``cut`` was made: what the cut before it kept."""
        place = next(i for i, other in enumerate(state.cuts) if other is cut)
        return state.cuts[place - 1].kept if place else state.layout.exists

    # -- decode --------------------------------------------------------------------------------------------------

    def _decode_layer(self, index: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        source = self.family.key_layers[index]
        held = cache.layers[source] if cache is not None and source < len(cache.layers) else None
        if not isinstance(held, PrunedLayerMixin):
            return None
        borrows = index in held.gone
        renumber = self.pruner.positions == "renumber"
        mask = kwargs.get("attention_mask")
        assert held.key_index is not None
        if not renumber and mask is None and not held.padded and not borrows:
            return None
        memo, key = self._local.decode_memo, (id(mask), held.stage, index if borrows else -1)
        if key not in memo:
            queries = hidden.shape[self.family.token_axis]
            changed: dict[str, Any] = {
                "attention_mask": decode_mask(
                    mask,
                    held.key_index if source == index else held.lent_index(index, queries),
                    held.dense_length - (0 if source == index else queries),
                    held.padded or borrows,
                    queries,
                    self.family.implementation,
                    hidden.dtype,
                )
            }
            if renumber:
                changed |= self._decode_positions(hidden, held, kwargs)
            memo[key] = (mask, changed)
        return (hidden,), {**kwargs, **memo[key][1]}

    def _decode_positions(self, hidden: torch.Tensor, held: PrunedLayerMixin, kwargs: dict[str, Any]) -> dict[str, Any]:
        positions = kwargs.get("position_ids")
        if positions is None:
            start = held.dense_length
            positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
        positions = positions - held.removed[:, None]
        return {"position_ids": positions, "position_embeddings": self.family.rotary(hidden, positions)}  # type: ignore[misc]
