"""Hooks inside a vision encoder: what scorers see of it is noted, and tokens go, inside its blocks.

Tokens go between a block's attention and its MLP (as ToMe and EViT do). A hook cannot shorten what the block holds
for its residual connection, so the pre-hook of the MLP's norm hands on the shortened tokens, the last module of the
branch keeps its result and answers with a view of zeros of the old length, and the block's own hook puts the two
together. Nothing of the old length is computed from there on.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.engine.cutter import Cutter
from prunekit.engine.encoder_cut import EncoderCut
from prunekit.engine.encoder_run import (
    EncoderRun,
    attention_function,
    frame_pool,
    note_merging,
    note_packing,
    packed_rows,
)
from prunekit.engine.media_watch import MediaWatch
from prunekit.engine.mounted import NotCopied, guard, own
from prunekit.engine.plan import EncoderPlan
from prunekit.engine.precision import in_float32, model_precision
from prunekit.engine.tap import AttentionOptions, Observer, Taps
from prunekit.errors import PrunekitError
from prunekit.families.vision import VisionTower
from prunekit.tensors.attention import AttentionInputs
from prunekit.tensors.indexing import gather_tokens
from prunekit.views.encoder import EncoderView
from prunekit.views.vision import BlockRecord, VisionRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EncoderThread(threading.local):
    """What the encoder is doing in the calling thread.

    Attributes:
        run: the run that goes on, None between runs.
        records: what the latest runs left, until a prefill takes it.
    """

    run: EncoderRun | None = None
    records: tuple[VisionRecord, ...] = ()


class EncoderHooks(NotCopied):
    """One pruner's hooks on one encoder. State of a run is thread-local; the record of the latest waits to be taken."""

    def __init__(self, tower: VisionTower, plan: EncoderPlan, media: MediaWatch | None = None) -> None:
        self.tower, self.plan, self.cutter, self.media = tower, plan, Cutter(plan), media
        self._thread = EncoderThread()
        self._handles: list[Any] = []
        self._taps = Taps()
        self._wrapped: list[tuple[Any, str]] = []
        self.publish: Callable[[VisionRecord], None] | None = None

    # -- on and off ----------------------------------------------------------------------------------------------

    def install(self, core: nn.Module | None = None) -> None:
        """Put the hooks on; ``core`` is the model around the encoder."""
        tower, add = self.tower, self._handles.append
        for encoder in (tower, *tower.twins):
            if encoder.projector is not None:  # an encoder alone may be run without its forward: its first block begins
                add(encoder.module.register_forward_pre_hook(self._enter, with_kwargs=True))
            for number, block in enumerate(encoder.blocks):
                add(block.register_forward_pre_hook(self._block_hook(number), with_kwargs=True, prepend=True))
            for number in sorted(self._observed()):
                self._observe_block(encoder, number)
            add(encoder.blocks[encoder.read].register_forward_hook(self._note_cls))
        for number in self.plan.counts:
            block = tower.blocks[number]
            add(getattr(block, tower.norm).register_forward_pre_hook(self._cut_hook(number)))
            add(getattr(block, tower.tail).register_forward_hook(self._keep_branch))
            # Before those with which transformers collects hidden states.
            add(block.register_forward_hook(self._join_branch, prepend=True))
        if tower.tiled and core is not None:
            self._note_packing(core)
            self._note_pooling(core)
        if tower.projector is not None:
            add(tower.projector.register_forward_pre_hook(self._enter_projector))
            add(tower.projector.register_forward_hook(self._leave_projector))
        else:
            add(tower.blocks[-1].register_forward_hook(self._leave_alone))
        guard(self._handles)

    def remove(self) -> None:
        """Take everything off again. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._taps.remove()
        self._handles = []
        for core, name in self._wrapped:
            delattr(core, name)
        self._wrapped = []

    def _wrap(self, core: PreTrainedModel, name: str, method: Callable[..., Any]) -> None:
        """Put ``method`` before the core's own of this name, until ``remove``."""
        method.of_session = True  # type: ignore[attr-defined]  # no part of the model
        setattr(core, name, method)
        self._wrapped.append((core, name))

    def _note_packing(self, core: PreTrainedModel) -> None:
        """Tiles are packed by a method of the model, with newlines between rows: it packs their numbers as well."""
        pack, note = core.pack_image_features, own(packed_rows)

        def packing(
            image_features: Sequence[torch.Tensor],
            *args: object,
            image_newline: torch.Tensor | None = None,
            **kwargs: object,
        ) -> Any:
            if self._thread.records:
                rows = note(pack, image_features, args, kwargs, image_newline is not None)
                self._thread.records[-1].rows = rows
            return pack(image_features, *args, image_newline=image_newline, **kwargs)

        self._wrap(core, "pack_image_features", packing)

    def _note_pooling(self, core: PreTrainedModel) -> None:
        """Frames of videos are pooled before the projector (LLaVA-NeXT-Video) or behind it (LLaVA-OneVision): what the
        encoder says of patches is pooled alike."""
        if (resampler := getattr(core, "vision_resampler", None)) is not None:

            def pooled_before(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
                if (run := self._run()) is not None:
                    run.record.pool = frame_pool(module)

            self._handles.append(resampler.register_forward_hook(pooled_before))
        elif (pool := getattr(core, "apply_pooling", None)) is not None:

            def pooling(features: torch.Tensor) -> torch.Tensor:
                pooled = pool(features)
                if self._thread.records:
                    record = self._thread.records[-1]
                    assert record.features is not None
                    record.pool, record.features, record.pooled_behind = pool, pool(record.features), True
                    self._lay_out_frames(record, pooled.shape[1], newline=True)
                return pooled

            self._wrap(core, "apply_pooling", pooling)

    def _lay_out_frames(self, record: VisionRecord, tokens: int, newline: bool) -> None:
        """The rows of pooled videos: ``tokens`` of each frame, and a newline behind each video."""
        call = None if self.media is None else self.media.current
        pixels = None if call is None else call.arguments.get("pixel_values_videos")
        if pixels is None:
            return  # of frames encoded by themselves nobody knows which form a video
        videos, frames = pixels.shape[:2]
        side = math.isqrt(tokens)
        record.images, record.grids = [tokens] * (videos * frames), [(side, side)] * (videos * frames)
        rows = torch.arange(videos * frames * tokens).view(videos, -1)
        mark = torch.full((videos, int(newline)), -1)
        record.rows = torch.cat([rows, mark], dim=1).flatten()

    def _observed(self) -> frozenset[int]:
        """Blocks whose queries and keys are looked at, or whose attention is weighted by sizes."""
        blocks = self.plan.noted_blocks | self.plan.evidence_blocks | frozenset(self.plan.counts)
        if self.plan.counts and self.plan.reducer.proportional_attention:
            blocks |= frozenset(range(min(self.plan.counts), len(self.tower.blocks)))
        return blocks

    # -- one run -------------------------------------------------------------------------------------------------

    def pop_records(self) -> tuple[VisionRecord, ...]:
        """What the latest runs of this thread left, once."""
        records, self._thread.records = self._thread.records, ()
        return records

    @model_precision()
    def project(self, features: torch.Tensor) -> torch.Tensor:
        """The projector on features [..., group · C] of tokens: [..., D]; no run of the encoder."""
        assert self.tower.project is not None
        run, self._thread.run = self._run(), None
        try:
            return self.tower.project(features)
        finally:
            self._thread.run = run

    def _run(self) -> EncoderRun | None:
        return self._thread.run

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = None if self.media is None else self.media.current
        kind = "image" if call is None else call.kind
        self._thread.run = run = EncoderRun(VisionRecord(self.tower, kind), self.tower.prefix)
        if self.tower.packed:
            note_packing(self.tower, run.record, args, kwargs)
        if self.plan.grid is None:
            return None
        pixels = args[0] if args else kwargs.pop("pixel_values")
        size = [cells * pixels.shape[-2 + i] // self.tower.grid[i] for i, cells in enumerate(self.plan.grid)]  # type: ignore[index]
        small = nn.functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return (small.to(pixels.dtype), *args[1:]), {**kwargs, "interpolate_pos_encoding": True}

    def _block_hook(self, number: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if number == 0:
                self._check_checkpointing(block)
            if number == 0 and self.tower.projector is None:
                self._thread.run = EncoderRun(VisionRecord(self.tower), self.tower.prefix)
            run = self._run()
            if run is None:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            run.hidden, run.view = hidden, None
            if self.tower.packed:
                return
            if number == 0:
                run.begin(hidden)
                if self.plan.grid is not None and self.tower.grid is not None:
                    run.shrink(self.tower.grid, self.plan.grid)
            run.length = hidden.shape[1]
            run.record.tokens.append([run.length] * len(hidden))

        return hook

    def _check_checkpointing(self, block: nn.Module) -> None:
        """A block that is run again in the backward pass runs without what the forward pass knew."""
        again = getattr(block, "gradient_checkpointing", False) or getattr(
            self.tower.module, "grad_checkpointing", False
        )
        if again and block.training and torch.is_grad_enabled() and self.plan.counts:
            raise PrunekitError(
                f"gradient checkpointing: tokens go inside {type(block).__name__}, which would run again"
            )

    # -- queries and keys ----------------------------------------------------------------------------------------

    def _observe_block(self, tower: VisionTower, number: int) -> None:
        """Let ``_observe`` see one block's queries and keys, and weigh its attention."""
        module: Any = tower.attentions[number]
        if tower.implementation:
            self._taps.add(module, self._tap(number), functools.partial(attention_function, tower, number))
            return
        queries: dict[int, torch.Tensor] = {}

        def note_query(_: nn.Module, args: object, output: torch.Tensor) -> None:
            queries[threading.get_ident()] = output

        def note_key(_: nn.Module, args: object, output: torch.Tensor) -> None:
            self._observe(number, queries.pop(threading.get_ident()), output, None, None, module.scale)

        def weigh(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]) -> Any:
            bias = self._bias()
            return None if bias is None else (args, {**kwargs, "attn_mask": bias.to(args[0].dtype)})

        self._handles.append(module.register_forward_pre_hook(weigh, with_kwargs=True))
        self._handles.append(module.q_norm.register_forward_hook(note_query))
        self._handles.append(module.k_norm.register_forward_hook(note_key))

    def _tap(self, number: int) -> Observer:
        def observe(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: torch.Tensor | None,
            options: AttentionOptions,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            if self._run() is not None:
                bias = self._bias()
                if bias is not None:
                    mask = bias.to(query.dtype) if mask is None else mask + bias.to(query.dtype)
                self._observe(number, query, key, value, mask, options.get("scaling") or query.shape[-1] ** -0.5)
            return query, mask

        return observe

    def _bias(self) -> torch.Tensor | None:
        """Proportional attention: log of the sizes, once something has merged."""
        run = self._run()
        if run is None or not run.record.cuts or not self.plan.reducer.proportional_attention:
            return None
        return run.log_sizes()

    def _observe(
        self,
        number: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> None:
        run = self._run()
        if run is None:
            return
        if mask is not None:
            mask = mask.expand(-1, -1, query.shape[2], -1)
        query, key = in_float32(query, key)
        values = in_float32(value)[0] if self.plan.uses_values and value is not None else None
        inputs = AttentionInputs(query, key, mask, scaling, causal=False, values=values)
        if number in self.plan.noted_blocks:
            index_TP = run.index - self.tower.prefix if run.record.cuts else None
            run.record.blocks.setdefault(number, BlockRecord(index=index_TP)).inputs.append(inputs)
        if self.tower.packed:
            return
        assert run.hidden is not None
        tower = self.tower
        run.view = EncoderView(run.hidden, number, run.kept, run.index, tower.grid, inputs, tower.has_cls, tower.prefix)
        if number in self.plan.evidence_blocks:
            run.evidence.add(self.plan, run.view)

    # -- cuts ----------------------------------------------------------------------------------------------------

    def _cut_hook(self, number: int) -> Callable[..., Any]:
        def hook(norm: nn.Module, args: tuple[Any, ...]) -> Any:
            run = self._run()
            if run is None:
                return None
            site = EncoderCut(run, args[0], self.plan.evidence[number], self.plan.counts[number])
            run.residual = self.cutter.cut(site)
            later = (blocks for cut, blocks in self.plan.evidence.items() if cut > number)
            run.evidence.keep_views(frozenset().union(*later))
            return (run.residual,)

        return hook

    def _keep_branch(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
        run = self._run()
        if run is None or run.residual is None or run.hidden is None:
            return None
        run.branch = output
        return output.new_zeros(()).expand(run.hidden.shape)

    def _join_branch(self, block: nn.Module, args: object, output: object) -> Any:
        run = self._run()
        if run is None or run.residual is None or run.branch is None:
            return None
        joined, run.residual, run.branch = run.residual + run.branch, None, None
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    # -- after the blocks ----------------------------------------------------------------------------------------

    def _note_cls(self, block: nn.Module, args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        run = self._run()
        if run is not None and self.tower.has_cls:
            (run.record.cls,) = in_float32((output[0] if isinstance(output, tuple) else output)[:, 0])

    def _enter_projector(self, projector: nn.Module, args: tuple[Any, ...]) -> None:
        if (run := self._run()) is None:
            return
        record, (features,) = run.record, in_float32(args[0])
        if self.tower.halves is not None:
            note_merging(record, args[1])
        if self.tower.packed:
            record.images = [rows * columns for rows, columns in record.grids]
        else:
            record.images = [run.kept.shape[1] // self.tower.group] * len(run.kept)
            record.grids = [self.tower.token_grid] * len(run.kept) if self.tower.token_grid is not None else []
        record.features = features if not record.cuts else self._dense(run, features)
        if self.tower.halves is not None and record.order is not None:  # the merger itself sorts them by squares
            record.features = features[0, record.order.to(features.device)]
        if not self.tower.packed and record.pool is None and (extra := features.shape[1] - run.kept.shape[1]) > 0:
            record.features = features[:, extra:]  # frames keep their CLS tokens (Video-LLaVA), which show nothing
            rows = torch.arange(run.kept.numel()).view(run.kept.shape)
            record.rows = torch.nn.functional.pad(rows, (extra, 0), value=-1).flatten()
        if record.pool is not None and not self.tower.packed:
            self._lay_out_frames(record, features.shape[1], newline=False)

    def _leave_projector(self, projector: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
        """The run is over; tokens that went leave zeros, so that the model finds as many features as placeholders."""
        if (run := self._run()) is None:
            return None
        self._thread.run, self._thread.records = None, (*self._thread.records, run.record)
        return self._dense(run, output) if run.record.cuts else None

    def _leave_alone(self, module: nn.Module, args: object, output: object) -> None:
        if (run := self._run()) is not None:
            slots_TP = run.index.gather(1, run.sources.clamp(min=0))
            run.record.index = slots_TP.masked_fill(run.sources < 0, -1)
            self._thread.run = None
            if self.publish is not None:
                self.publish(run.record)

    def _dense(self, run: EncoderRun, x: torch.Tensor) -> torch.Tensor:
        """x [T, M, C] of what stands, at the places of its patches: [T, P, C], zero elsewhere."""
        dense = gather_tokens(x, (run.index - run.prefix).clamp(min=0))
        return dense * run.kept[..., None].to(dense.dtype)
