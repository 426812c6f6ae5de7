"""The hooks: a session watches one model, removes visual tokens in its prefills and keeps its decode steps in step.

Data flow of a prefill: the core model's pre-hook finds the visual tokens (``PromptLayout``) and opens a ``Prefill``;
each decoder layer's pre-hook cuts if a cut is due (``Cutter``), then hands the layer the compact sequence with rotary
embeddings and masks to match; the attention tap of a layer below a cut turns its q and k into evidence; the last
layer's hook scatters what is left back to the dense shape; the core's hook seals the cache layers and publishes the
trace. A decode step only rewrites the mask of layers whose cache is sealed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.engine.arrival import arrive
from prunekit.engine.cache import PrunedLayerMixin, cache_in, check_cache, is_fresh, is_plain, seal_layers
from prunekit.engine.caller import Caller, PromptMarks, check_whole, fit_marks, prompt_end
from prunekit.engine.decode import corrects_steps, decode_layer, mask_over_keys
from prunekit.engine.decoder_cut import DecoderCut, LayerCutter
from prunekit.engine.forward_state import DecodeStep, DensePass
from prunekit.engine.guards import (
    check_budget,
    check_checkpointing,
    check_implementation,
    check_packing,
    check_replica,
    check_sequence,
    checkpoints,
)
from prunekit.engine.layer_inputs import foreign_keys, has_masks
from prunekit.engine.lookahead import Peeked
from prunekit.engine.mounted import NotCopied, guard, mark
from prunekit.engine.plan import Plan
from prunekit.engine.prefill import Prefill
from prunekit.engine.tap import AttentionOptions, Mask, Taps, attention_inputs
from prunekit.engine.target import Target
from prunekit.engine.unrotated import angles_of, note_projections, unrotated
from prunekit.engine.weighing import weighed
from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.tensors.indexing import gather_tokens, scatter_where
from prunekit.tensors.sequences import PromptLayout, repeated
from prunekit.views.doubts import check_doubts
from prunekit.views.layer import Regions
from prunekit.views.media import MediaRecord
from prunekit.views.trace import Trace, TraceRecord

if TYPE_CHECKING:
    from transformers import Cache

_pruned: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def hold(module: nn.Module, session: NotCopied) -> None:
    """Note that a session prunes a model; raises if another does."""
    if (reference := _pruned.get(module)) is not None and reference() is not None:
        raise PrunekitError(
            f"{type(module).__name__} is pruned already: remove that pruner first, by its handle.remove() or "
            "prunekit.remove(model)"
        )
    _pruned[module] = weakref.ref(session)


def holder(module: nn.Module) -> Any:
    """The session that prunes a model's core, None if there is none."""
    return None if (reference := _pruned.get(module)) is None else reference()


def release(module: nn.Module, session: NotCopied) -> None:
    """Forget that a session prunes a model, if it does."""
    if (reference := _pruned.get(module)) is not None and reference() is session:
        del _pruned[module]


class Session(NotCopied, Target):
    """One pruner applied to one model, from ``install`` to ``remove``. All per-forward state is thread-local."""

    def __init__(
        self,
        plan: Plan,
        family: Family,
        *,
        regions: Regions | None = None,
        prompt: PromptMarks | None = None,
        visual: torch.Tensor | None = None,
        cutter: LayerCutter | None = None,
    ) -> None:
        super().__init__(plan, family)
        self.cutter = cutter or LayerCutter(plan)
        self.check_masks()
        self.regions, self.prompt, self.visual = regions, prompt, visual
        self.caller = Caller(family.model)
        self.trace = Trace()
        self._handles: list[Any] = []
        self._taps = Taps()
        self._corrects_steps = corrects_steps(self)

    def check_masks(self) -> None:
        self.cutter.check(self)

    def install(self) -> None:
        """Put the hooks on. A model that another pruner holds is refused; a failure leaves the model untouched."""
        core = self.family.core
        hold(core, self)
        try:
            self._handles.append(core.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
            for index, layer in enumerate(self.family.layers):
                hook = self._layer_hook(index)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
            for layer in self.family.layers if self.family.touches_hidden_between_layers else self.family.layers[-1:]:
                self._handles.append(layer.register_forward_hook(self._to_dense))
            self._handles.append(core.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
            if self.encoder is not None:
                self.encoder.install(core)
            if self.media is not None:
                self.media.install()
            if (embeddings := self.family.input_embeddings) is not None:
                self._handles.append(embeddings.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            if (decoder := self.family.decoder) is not core:
                self._handles.append(decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
            if self.plan.positions == "renumber" and (rotary := self.family.rotary) is not None:
                self._handles.append(rotary.register_forward_pre_hook(self._note_positions, with_kwargs=True))
            for index in range(self.plan.first_layer, self.family.depth):
                if (bias := self.family.relative_bias(index)) is not None:
                    self._handles.append(bias.register_forward_hook(self._bias_hook(index)))
            taps_all = self.adjusts or self.plan.weighs_attention
            adjusted = range(self.plan.first_layer, self.family.depth) if taps_all else ()
            evidence = self.plan.evidence_layers if self.plan.scorer.uses_attention else ()
            mixed = (i for i in range(self.plan.first_layer, self.family.depth) if self.family.mixes_and_attends(i))
            for index in sorted({*adjusted, *evidence, *mixed}):
                self._tap(index)
            self._handles += self.caller.install()
            guard(self._handles)
            self._handles += mark(self.family.model)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take everything off again; the model is as before. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._taps.remove()
        self.caller.remove()
        if self.encoder is not None:
            self.encoder.remove()
        if self.media is not None:
            self.media.remove()
        self._handles = []
        release(self.family.core, self)

    # -- attention -----------------------------------------------------------------------------------------------

    def _tap(self, index: int) -> None:
        """Let ``_observe`` see what one layer hands to its attention function."""
        self.family.attention_function(index)  # raises for a layer without one

        def observe(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: Mask,
            options: AttentionOptions,
        ) -> tuple[torch.Tensor, Mask]:
            state = self._prefill()
            if self.family.mixes_and_attends(index):
                mask = mask_over_keys(self, mask, state, query)
            if state is not None and state.sequence.index is not None:
                query = self.family.adjust_query(index, query, state.sequence.index)
            if self.plan.weighs_attention:
                mask = weighed(self, module, mask, query, options)
            if state is not None and index in self.plan.evidence_layers and self.plan.scorer.uses_attention:
                values = value if self.plan.uses_values else None
                if self.thread.looks_ahead:  # the layer runs for this alone
                    before = self._before_rotary(index, query, key)
                    raise Peeked(attention_inputs(module, query, key, mask, options, None, values, *before))
                # A layer that will be run again must not save more for the backward pass than it will then.
                with torch.set_grad_enabled(torch.is_grad_enabled() and not checkpoints(self.family)):
                    self._observe(state, index, module, query, key, values, mask, options)
            return query, mask

        module = self.family.attentions[index]
        assert module is not None  # attention_function raises
        if self.plan.uses_unrotated and index in self.plan.evidence_layers:
            self._handles += note_projections(module, self.thread)
        self._taps.add(module, observe, functools.partial(self.family.attention_function, index))

    def _bias_hook(self, index: int) -> Callable[..., Any]:
        """A layer's bias by distance, from true positions instead of places in the shortened sequence."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            state, cache_layer = self._prefill(), self.cache_layer
            if state is not None and state.sequence.index is not None:
                return self.family.bias_at(module, args[0], state.sequence.index, state.sequence.index)
            if state is None and cache_layer is not None:
                key_index_BK = cache_layer.lent
                query_index_BQ = key_index_BK[:, key_index_BK.shape[1] - args[0].shape[1] :]
                return self.family.bias_at(module, args[0], query_index_BQ, key_index_BK)
            return None

        return hook

    def _observe(
        self,
        state: Prefill,
        index: int,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        mask: Mask,
        options: AttentionOptions,
    ) -> None:
        if state.hidden is None or index in state.evidence:
            return  # a second pass over the layer (gradient checkpointing) has nothing new
        view = state.view(index, state.hidden.to(query.device), self.family.grid)  # of a layer on another device
        places = foreign_keys(self, index, state)
        before = self._before_rotary(index, query, key)
        view.inputs = attention_inputs(module, query, key, mask, options, places, value, *before)
        state.evidence.add(self.plan, view)

    def _before_rotary(
        self, index: int, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, tuple[torch.Tensor, torch.Tensor] | None]:
        """The layer's queries and keys before the rotary embedding, and its cosines and sines, where a component reads
        them."""
        if not self.plan.uses_unrotated:
            return None, None
        noted, self.thread.projected = self.thread.projected, {}
        where = f"layer {index} of '{self.family.model_type}'"
        return unrotated(where, noted, query, key), angles_of(noted, query)

    # -- prefill -------------------------------------------------------------------------------------------------

    def _prefill(self) -> Prefill | None:
        forward = self.thread.forward
        return forward if isinstance(forward, Prefill) else None

    def _enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        thread = self.thread
        thread.depth, thread.forward = thread.depth + 1, None
        self.check_answers()
        check_replica(core, self.family.core)
        check_implementation(self)
        input_ids = kwargs.get("input_ids")
        if input_ids is None and args:
            input_ids = args[0]
        embeds = kwargs.get("inputs_embeds")
        if input_ids is None and (embedded := thread.embedded_ids) is not None:
            input_ids = repeated(embedded, embeds)
            thread.embedded_ids = None  # other embeddings of this shape are not known to be theirs
        cache = cache_in(kwargs, args)
        if not is_fresh(cache):
            self._check_step(cache, input_ids, embeds, kwargs)
            thread.forward = DecodeStep(not self._corrects_steps and is_plain(cache))
            return
        check_packing(kwargs)
        visual, mask = self._visual(input_ids, embeds, kwargs), kwargs.get("attention_mask")
        end = prompt_end(self.caller, self.prompt, visual, mask)
        layout = PromptLayout.build(input_ids, mask, visual, end.mask)
        if not any(layout.counts):
            if any("pixel" in name for name, value in kwargs.items() if value is not None):
                raise PrunekitError(f"images, but no placeholder {self.family.token_ids} in input_ids")
            thread.forward = DensePass(layout)
            return
        check_whole(self.caller, visual.shape[1])
        if cache is not None:
            check_cache(cache, self.family.cache_slots[self.plan.first_layer][0])
        if not end.known:
            self._check_growth(input_ids if embeds is None else embeds)
        check_budget(self, visual.shape[1])
        check_checkpointing(self)
        thread.forward = Prefill.begin(layout, self.regions, prompt_known=end.known)
        self.cutter.begin(thread.forward, kwargs)
        if any("pixel" in name for name, value in kwargs.items() if value is not None):
            self._forget_encoded()  # what an earlier run left: this forward pass encodes its own
        if self.media is not None:
            thread.forward.inputs = {name: value for name, value in kwargs.items() if name != "cache"}

    def _forget_encoded(self) -> None:
        if self.encoder is not None:
            self.encoder.pop_records()
        if self.media is not None:
            self.media.pop()

    def _visual(
        self, input_ids: torch.Tensor | None, embeds: torch.Tensor | None, kwargs: dict[str, object]
    ) -> torch.Tensor:
        """Where the visual tokens of a prefill stand, bool [B, S]: as the caller marks them, else by their ids."""
        tokens = input_ids if input_ids is not None else embeds
        if tokens is None:
            raise PrunekitError(f"{type(self.family.core).__name__} was given neither input_ids nor inputs_embeds")
        if self.visual is not None:
            marks = fit_marks("visual", self.visual, tokens, longer=self.caller.call.generating)
            if not bool(marks.any()):
                raise PrunekitError("visual marks no token: there is nothing to prune")
            return marks
        if input_ids is None:
            raise PrunekitError(
                "inputs_embeds alone do not show which tokens are visual: say where they stand, by a bool mask [B, S]: "
                "pruner(model, visual=mask)"
            )
        return self.family.find_visual(input_ids, kwargs)

    def _check_step(
        self, cache: Cache, input_ids: torch.Tensor | None, embeds: torch.Tensor | None, kwargs: dict[str, object]
    ) -> None:
        """Raise for what a cache cannot be continued with: images, and the rest of a prompt whose first part was pruned
        without hearing it."""
        tokens = input_ids if input_ids is not None else embeds
        if tokens is None or tokens.shape[1] == 1:
            return
        images = any(
            "pixel" in name or name == "mm_encoder_outputs" for name, value in kwargs.items() if value is not None
        )
        if images and input_ids is not None and bool(self.family.find_visual(input_ids, kwargs).any()):
            raise PrunekitError("new images on top of a KV cache cannot be pruned: prefill them in one go")
        if any(isinstance(layer, PrunedLayerMixin) and not layer.prompt_known for layer in cache.layers):
            raise PrunekitError(
                f"{tokens.shape[1]} tokens on a pruned KV cache: prefill a prompt in one go; if they are new words, "
                "say that the prompt was whole: pruner(model, prompt='all')"
            )

    def _check_growth(self, tokens: torch.Tensor | None) -> None:
        """Raise for a prefill that repeats the one before and goes on: a generation that keeps no cache."""
        before, self.thread.latest_tokens = self.thread.latest_tokens, tokens
        if before is None or tokens is None or before.ndim != tokens.ndim or before.shape[0] != tokens.shape[0]:
            return
        if before.shape[1] < tokens.shape[1] and torch.equal(before, tokens[:, : before.shape[1]].to(before)):
            more = tokens.shape[1] - before.shape[1]
            raise PrunekitError(
                f"the {before.shape[1]} tokens of the prefill before and {more} more, without its KV cache: what was "
                "written would choose what stays; keep the cache, or mark the prompt: pruner(model, prompt=mask)"
            )

    def _note_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self.thread.forward
        if forward is not None and forward.positions is None:  # later calls are prunekit's own
            forward.positions = args[1] if len(args) > 1 else kwargs.get("position_ids")

    def _note_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.thread.embedded_ids = args[0] if args else kwargs["input"]

    def _enter_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Layers that share keys may be given the last rows alone; a prefill that is cut needs them all. A decoder that
        is called by itself shows no visual tokens: with nothing but words it may."""
        if not self.inside() and is_fresh(cache_in(kwargs, args)):
            ids = kwargs.get("input_ids", args[0] if args else None)
            if ids is None or bool(self.family.visual_mask(ids).any()):
                whole = type(self.family.core).__name__
                raise PrunekitError(
                    f"{type(module).__name__} was called by itself and would not be pruned: call {whole} with "
                    "inputs_embeds, and say where its visual tokens stand: pruner(model, visual=mask)"
                )
        if self._prefill() is None or not kwargs.get("logits_to_keep"):
            return None
        return args, {**kwargs, "logits_to_keep": 0}

    def _layer_hook(self, index: int) -> Callable[..., Any]:
        ahead = self.plan.first_layer

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]) -> Any:
            forward = self.thread.forward
            if forward is None or isinstance(forward, DensePass):
                return None
            if isinstance(forward, DecodeStep):
                if index < ahead or (forward.unmasked_is_exact and len(args) < 2 and not has_masks(kwargs)):
                    return None
                return self._decode_layer(index, forward, *self._named(args, kwargs))
            return self._prefill_layer(index, forward, *self._named(args, kwargs))

        return hook

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, object]) -> tuple[torch.Tensor, dict[str, object]]:
        """A layer's hidden states, and its other arguments by name, whichever way the model passes them; hidden states
        stay positional for gradient checkpointing."""
        named = {**dict(zip(self.family.layer_arguments, args, strict=False)), **kwargs}
        return named.pop(self.family.layer_arguments[0]), named

    def _prefill_layer(self, index: int, state: Prefill, hidden: torch.Tensor, kwargs: dict[str, object]) -> Any:
        if self.family.touches_hidden_between_layers and state.sequence.index is not None:
            hidden = gather_tokens(hidden, state.sequence.index, self.family.token_axis)
        check_sequence(self, index, state, hidden)
        if index == 0:
            state.inputs_embeds = self.family.one_state(hidden)
            if self.media is not None:
                state.media = MediaRecord(self.family, self.media.pop(), state.inputs)
            if self.encoder is not None:
                hidden = arrive(self.encoder.pop_records(), state, hidden, self.family.token_axis)
        if index in self.plan.cut_layers:
            hidden = self.cutter.cut(DecoderCut(self, index, state, hidden, kwargs))
            state.evidence.keep_views(self.plan.evidence_after(index))
        state.sequences.append(state.sequence)
        state.hidden = self.family.one_state(hidden) if index in self.plan.evidence_layers else None
        if state.hidden is not None and index not in state.evidence and not self.plan.scorer.uses_attention:
            state.evidence.add(self.plan, state.view(index, state.hidden, self.family.grid))
        return self.cutter.pass_on(self, index, state, hidden, kwargs)

    def _to_dense(self, layer: nn.Module, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
        """After the last layer (after each, where the model adds to hidden states between layers): back to the dense
        shape, zeros where tokens are gone."""
        state = self._prefill()
        if state is None or state.sequence.index is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        size = state.layout.real.shape[1]
        axis = self.family.token_axis
        tokens = hidden.movedim((axis - 1, axis), (0, 1))
        dense = scatter_where(tokens, state.sequence.index, state.sequence.valid, size).movedim(
            (0, 1), (axis - 1, axis)
        )
        return (dense, *output[1:]) if isinstance(output, tuple) else dense

    def _leave(self, core: nn.Module, args: object, kwargs: dict[str, object], output: object) -> None:
        """End of a forward pass, also of one that failed (``output`` is None then)."""
        thread, state = self.thread, self.thread.forward
        thread.depth, thread.forward = thread.depth - 1, None
        if output is not None and isinstance(state, DensePass):
            lengths = torch.tensor([state.layout.lengths] * self.family.depth)
            self.trace.publish(TraceRecord(tokens_per_layer=lengths))
        if not isinstance(state, Prefill) or output is None or len(state.sequences) < self.family.depth:
            return
        thread.doubts = tuple(state.doubts)
        if state.kept.device.type == "cpu":
            self.check_answers()
        if (cache := cache_in(kwargs, args, output)) is not None:
            seal_layers(cache, state, self.family, self)
        record = TraceRecord(state.cuts, torch.tensor([sequence.lengths for sequence in state.sequences]))
        if state.vision is not None:
            record.vision_tokens = torch.cat([torch.tensor(run.tokens) for run in state.vision.records], dim=-1)
        self.trace.publish(record)

    def check_answers(self) -> None:
        """Raise if a component's answer was wrong (NaN scores). On a CPU at the end of the prefill; elsewhere, so that
        no prefill has to wait for its device, at the start of the thread's next forward pass or at removal."""
        doubts, self.thread.doubts = self.thread.doubts, ()
        check_doubts(doubts)

    def _decode_layer(self, index: int, step: DecodeStep, hidden: torch.Tensor, kwargs: dict[str, object]) -> Any:
        cache = cache_in(kwargs)
        slot = self.family.cache_slots[index][0]
        layer = cache.layers[slot] if cache is not None and slot < len(cache.layers) else None
        pruned = isinstance(layer, PrunedLayerMixin) and layer.prompt_index is not None
        step.cache_layer = layer if pruned else None
        return decode_layer(self, index, hidden, kwargs, step.arguments)
