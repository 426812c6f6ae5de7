"""The hooks: a session watches one model, removes visual tokens in its prefills and keeps its decode steps in step.

Data flow of a prefill: the core model's pre-hook finds the visual tokens (``Layout``) and opens a ``Prefill``; each
decoder layer's pre-hook cuts if a cut is due, then hands the layer the compact sequence with rotary embeddings and
masks to match; the attention tap of a layer below a cut turns its q and k into evidence; the last layer's hook
scatters what is left back to the dense shape; the core's hook seals the cache layers and publishes the trace.
A decode step only rewrites the mask of layers whose cache is sealed.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.engine.arguments import compact, foreign_keys
from prunekit.engine.cache import PrunedLayerMixin, cache_of, check_cache, is_plain, seal_layers
from prunekit.engine.checks import nan_scores, raise_nan
from prunekit.engine.decode import corrects_steps, decode_layer
from prunekit.engine.layout import Layout, on_device, take
from prunekit.engine.state import CutRecord, Prefill, Trace
from prunekit.engine.tap import Taps, attention_inputs
from prunekit.errors import PrunekitError
from prunekit.families import Family, family_of

if TYPE_CHECKING:
    from prunekit.pruner import Plan, Pruner

_pruned: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()


class Session:
    """One pruner applied to one model, from ``install`` to ``remove``. All per-forward state is thread-local."""

    def __init__(self, pruner: Pruner, model: nn.Module) -> None:
        self.pruner = pruner
        self.family: Family = family_of(model)
        self.plan: Plan = pruner.plan(self.family)
        if reason := self.family.refuses_cuts(self.plan.cut_layers):
            raise PrunekitError(f"model type '{self.family.model_type}' cannot be pruned here: {reason}")
        self.trace = Trace()
        self._local = threading.local()
        self._handles: list[Any] = []
        self._taps = Taps()
        self._warned = False
        self._corrects_steps = corrects_steps(self)

    def inside(self) -> bool:
        """Whether the calling thread is in a forward pass of this session's model."""
        return getattr(self._local, "depth", 0) > 0

    @property
    def positions(self) -> torch.Tensor | None:
        """The position ids of the running forward pass, as the model gave them to its rotary embedding."""
        return getattr(self._local, "positions", None)

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
            if self.pruner.positions == "renumber" and (rotary := self.family.rotary) is not None:
                self._handles.append(rotary.register_forward_pre_hook(self._note_positions, with_kwargs=True))
            for index in range(self.plan.first_layer, self.family.depth):
                if (bias := self.family.relative_bias(index)) is not None:
                    self._handles.append(bias.register_forward_hook(self._bias_hook(index)))
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
        self._taps.remove()
        self._handles = []
        if (held := _pruned.get(self.family.core)) is not None and held() is self:
            del _pruned[self.family.core]

    # -- attention -----------------------------------------------------------------------------------------------

    def _tap(self, index: int) -> None:
        """Let ``_observe`` see what one layer hands to its attention function."""
        original = self.family.attention_function(index)

        def tap(
            module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            state = self._prefill()
            if state is not None and state.stage.index is not None:
                query = self.family.adjust_query(index, query, state.stage.index)
            if state is not None and index in self.plan.evidence_layers and self.pruner.scorer.uses_attention:
                # A layer that will be run again must not save more for the backward pass than it will then.
                with torch.set_grad_enabled(torch.is_grad_enabled() and not self._checkpoints()):
                    self._observe(state, index, module, query, key, mask, kwargs)
            return original(module, query, key, value, mask, **kwargs)

        module = self.family.attentions[index]
        assert module is not None  # attention_function raises
        self._taps.add(module, tap, self.family.implementation)

    def _bias_hook(self, index: int) -> Callable[..., Any]:
        """A layer's bias by distance, from true positions instead of places in the shortened sequence."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            state = self._prefill()
            held = getattr(self._local, "held", None)
            if state is not None and state.stage.index is not None:
                return self.family.bias_at(module, args[0], state.stage.index, state.stage.index)
            if state is None and isinstance(held, PrunedLayerMixin):
                keys, queries = held.lent, args[0].shape[1]
                return self.family.bias_at(module, args[0], keys[:, keys.shape[1] - queries :], keys)
            return None

        return hook

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
        view = state.view(index, state.hidden, self.family.grid)
        view.inputs = attention_inputs(module, query, key, mask, kwargs, foreign_keys(self, index, state))
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
        self.check_scores()
        local.prefill, local.decode_memo, local.held, local.positions, local.plain = None, {}, None, None, False
        input_ids = kwargs.get("input_ids")
        if input_ids is None and args:
            input_ids = args[0]
        if input_ids is None and (noted := getattr(local, "ids", None)) is not None:
            given = kwargs.get("inputs_embeds")
            input_ids = noted if given is not None and noted.shape == given.shape[:2] else None
        cache = cache_of(kwargs)
        fresh = cache is None or cache.get_seq_length() == 0
        if input_ids is None:
            if fresh:
                raise PrunekitError("prunekit finds visual tokens by input_ids; inputs_embeds alone do not show them")
            local.plain = not self._corrects_steps and is_plain(cache)
            return
        if not fresh:
            pixels = any("pixel" in name or name == "mm_encoder_outputs" for name, v in kwargs.items() if v is not None)
            if pixels and bool(self.family.find_visual(input_ids, kwargs).any()):
                raise PrunekitError("new images on top of a KV cache cannot be pruned: prefill them in one go")
            local.plain = not self._corrects_steps and is_plain(cache)
            return
        visual = self.family.find_visual(input_ids, kwargs)
        if cache is not None:
            check_cache(cache)
        layout = Layout.build(input_ids, kwargs.get("attention_mask"), visual)
        if not any(layout.counts):
            raise PrunekitError(f"no visual tokens in the batch: no placeholder {self.family.token_ids} in input_ids")
        self._check_budget(input_ids.shape[1])
        self._check_checkpointing()
        local.prefill = Prefill.begin(layout)

    def _check_budget(self, length: int) -> None:
        """Attention that chooses keys by an index sees all of them only within its budget: warn once beyond."""
        budget = self.family.sparse_budget
        if budget is None or length <= budget or self._warned:
            return
        self._warned = True
        name = self.family.model_type
        warnings.warn(
            f"'{name}': {length} tokens exceed the {budget} keys that its sparse attention chooses; it chooses anew "
            "among what stays, so that removal no longer equals masking",
            stacklevel=3,
        )

    def _check_checkpointing(self) -> None:
        """A layer that is run again in the backward pass runs without what the forward pass knew."""
        if not self._checkpoints() or not torch.is_grad_enabled():
            return
        kind, name = type(self.family.layers[0]), self.family.model_type
        if self._adjusts or any(self.family.relative_bias(i) is not None for i in range(self.family.depth)):
            raise PrunekitError(f"gradient checkpointing: {kind.__name__} of '{name}' depends on true positions inside")
        if any("__call__" in vars(base) and "Checkpoint" in base.__name__ for base in kind.__mro__):
            raise PrunekitError(
                f"gradient checkpointing: {kind.__name__} of this transformers runs hooks twice; use 5.23"
            )

    def _checkpoints(self) -> bool:
        layer: Any = self.family.layers[0]
        return bool(getattr(layer, "gradient_checkpointing", False) and layer.training)

    def _note_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.inside() and self.positions is None:  # later calls are prunekit's own
            self._local.positions = args[1] if len(args) > 1 else kwargs.get("position_ids")

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
            if state is None and (index < ahead or not self.inside() or self._idle(args, kwargs)):
                return None
            # By name, whichever way the model passes them; hidden states stay positional for gradient checkpointing.
            named = {**dict(zip(self.family.layer_arguments, args, strict=False)), **kwargs}
            hidden = named.pop("hidden_states")
            if state is not None:
                return self._prefill_layer(index, state, hidden, named)
            return self._decode_layer(index, hidden, named)

        return hook

    def _idle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a layer's decode step can stay as it is: no mask, and nothing else in this step to correct."""
        return self._local.plain and len(args) < 2 and kwargs.get("attention_mask") is None

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

        return (hidden,), {name: compact(self, index, name, value, state, hidden) for name, value in kwargs.items()}

    def _cut(self, index: int, state: Prefill, hidden: torch.Tensor) -> torch.Tensor:
        """Decide what stays before layer ``index`` and shorten the sequence to it."""
        layout, pruner = state.layout, self.pruner
        scores = self._fused_scores(index, state, hidden).to(state.kept.device)
        scores = scores.masked_fill(~state.kept, torch.nan)
        counts = [self.plan.keep(index, n, full) for n, full in zip(layout.counts, layout.lengths, strict=True)]
        lengths = tuple(full - n + k for full, n, k in zip(layout.lengths, layout.counts, counts, strict=True))
        if all(n == k for n, k in zip(layout.counts, counts, strict=True)):
            kept = state.kept
        else:
            keep = on_device(counts, state.kept.device)
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
        tokens, device = take(hidden, state.slots), hidden.device
        sizes = (state.sizes if state.sizes is not None else state.layout.exists.float()).to(device)
        tokens, state.sizes = self.pruner.reducer.reduce(tokens, sizes, kept.to(device), state.kept.to(device))
        # Tokens that are gone or pad all point somewhere: send them to an extra slot that is cut off again.
        spare = hidden.shape[1]
        slots = state.slots.masked_fill(~kept, spare)[..., None].expand_as(tokens).to(device)
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
        index = index.to(hidden.device)
        # Padding slots all write to an extra position, which is cut off again.
        axis = self.family.token_axis
        moved = hidden.movedim((axis - 1, axis), (0, 1))
        dense = moved.new_zeros(moved.shape[0], size + 1, *moved.shape[2:])
        rows = torch.arange(len(index), device=index.device)[:, None]
        dense = dense.index_put((rows, index), moved)[:, :size]
        dense = dense.movedim((0, 1), (axis - 1, axis))
        return (dense, *output[1:]) if isinstance(output, tuple) else dense

    def _leave(self, core: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """End of a forward pass, also of one that failed (``output`` is None then)."""
        state, local = self._prefill(), self._local
        local.depth, local.prefill, local.decode_memo = local.depth - 1, None, {}
        if state is None or output is None or len(state.stages) < self.family.depth:
            return
        local.unchecked = nan_scores(state)
        if state.kept.device.type == "cpu":
            self.check_scores()
        cache = cache_of(kwargs)
        if cache is None:
            cache = cache_of(output) if hasattr(output, "get") else None
        if cache is not None:
            seal_layers(cache, state, self)
        self.trace.cuts = state.cuts
        self.trace.tokens_per_layer = torch.tensor([stage.lengths for stage in state.stages])

    def check_scores(self) -> None:
        """Raise if a scorer made NaN. On a CPU at the end of the prefill; elsewhere, so that no prefill has to wait for
        its device, at the start of the thread's next forward pass or at removal."""
        unchecked, self._local.unchecked = getattr(self._local, "unchecked", []), []
        raise_nan(unchecked)

    def _decode_layer(self, index: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Any:
        cache = cache_of(kwargs)
        held = cache.layers[index] if cache is not None and index < len(cache.layers) else None
        self._local.held = held if isinstance(held, PrunedLayerMixin) and held.prompt_index is not None else None
        return decode_layer(self, index, hidden, kwargs, self._local.decode_memo)
