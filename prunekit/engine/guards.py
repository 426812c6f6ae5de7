"""What a forward pass must not be: said before anything is pruned."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from prunekit.components.base import Reducer
from prunekit.engine.prefill import Prefill
from prunekit.engine.target import Target
from prunekit.errors import PrunekitError
from prunekit.families import Family


def check_budget(target: Target, length: int) -> None:
    """Attention that chooses keys by an index sees all of them only within its budget: warn once beyond."""
    budget = target.family.sparse_budget
    if budget is None or length <= budget or target.warned:
        return
    target.warned = True
    name = target.family.model_type
    warnings.warn(
        f"'{name}': {length} tokens exceed the {budget} keys that its sparse attention chooses; it chooses anew "
        "among what stays, so that removal no longer equals masking",
        stacklevel=4,
    )


def check_implementation(target: Target) -> None:
    """Check an attention implementation that the model was given since the last forward pass, as ``apply`` checks the
    first.

    Raises:
        PrunekitError: where it cannot be pruned under.
    """
    names, tower = target.current_implementations(), target.tower
    if names == target.implementations:
        return
    if reason := target.family.refusal():
        raise PrunekitError(f"set_attn_implementation('{names[0]}') under a pruner: {reason}")
    if tower is not None and target.plan.cuts_inside_encoder:
        check_weights(target.plan.reducer, tower.implementation)
    target.check_masks()
    target.implementations = names


def check_weights(reducer: Reducer, implementation: str) -> None:
    """A reducer that weighs attention by sizes needs an implementation that takes a mask of numbers.

    Raises:
        PrunekitError: for flash attention, which takes none.
    """
    if reducer.proportional_attention and implementation.startswith("flash"):
        raise PrunekitError(f"{implementation} cannot weigh attention by sizes: use 'sdpa'")


def check_replica(module: nn.Module, own: nn.Module) -> None:
    """DataParallel's replicas share the hooks of the model, but have weights, devices and threads of their own.

    Raises:
        PrunekitError: for a replica.
    """
    if module is not own:
        raise PrunekitError(
            "DataParallel on several devices replicates the pruned model: use DistributedDataParallel, one process a "
            "device, or DataParallel(model, device_ids=[0])"
        )


def check_checkpointing(target: Target) -> None:
    """A layer that is run again in the backward pass runs without what the forward pass knew.

    Raises:
        PrunekitError: for layers that need to know.
    """
    family = target.family
    if not checkpoints(family) or not torch.is_grad_enabled():
        return
    kind, name = type(family.layers[0]), family.model_type
    if target.plan.weighs_attention:
        raise PrunekitError(f"gradient checkpointing: layers of '{name}' would run again without the weights of sizes")
    if target.adjusts or any(family.relative_bias(i) is not None for i in range(family.depth)):
        raise PrunekitError(f"gradient checkpointing: {kind.__name__} of '{name}' depends on true positions inside")
    if any("__call__" in vars(base) and "Checkpoint" in base.__name__ for base in kind.__mro__):
        raise PrunekitError(f"gradient checkpointing: {kind.__name__} of this transformers runs hooks twice; use 5.23")


def check_sequence(target: Target, index: int, state: Prefill, hidden: torch.Tensor) -> None:
    """The sequence that reaches a layer must be the one that prunekit has in mind: each layer runs once, in order, on
    as many tokens as ``input_ids`` has, less those that prunekit took.

    A model may drop, merge or add tokens in its own forward, or run a block of layers several times.

    Raises:
        PrunekitError: where it is another.
    """
    family, sequence = target.family, state.sequence
    name, ran = f"'{family.model_type}'", len(state.sequences)
    if index != ran:
        again = "a second time" if index < ran else f"before layer {ran}"
        raise PrunekitError(f"{name} cannot be pruned: its layer {index} runs {again} in one forward pass")
    if sequence.valid is not None and (module := family.leaks_padding(index)) is not None:
        raise PrunekitError(
            f"{name} cannot be pruned to rows of unequal length: {module} of layer {index} mixes neighbours and looks "
            "at no padding mask; give it samples with equal numbers of tokens"
        )
    tokens = hidden.shape[family.token_axis]
    expected = state.layout.real.shape[1] if sequence.index is None else sequence.index.shape[1]
    if tokens != expected:
        raise PrunekitError(
            f"{name} cannot be pruned: {tokens} tokens reach its decoder layer {index}, not {expected} as input_ids "
            "says; it drops, merges or adds tokens in its own forward: switch that off"
        )


def checkpoints(family: Family) -> bool:
    """Whether the decoder's layers are run again in the backward pass."""
    layer: Any = family.layers[0]
    return bool(getattr(layer, "gradient_checkpointing", False) and layer.training)


PACKED = ("cu_seq_lens_q", "cu_seqlens", "cumulative_seqlens_q", "seq_idx")
"""Keywords by which a caller says where the samples of a packed row begin."""


def check_packing(inputs: dict[str, object]) -> None:
    """Raise for several samples packed into one row: instruction and budget are those of a sample, so each needs a row.

    transformers takes positions that begin anew, with no mask, for the start of another sample.
    """
    packed = any(inputs.get(name) is not None for name in PACKED)
    positions = inputs.get("position_ids")
    if not packed and inputs.get("attention_mask") is None and isinstance(positions, torch.Tensor):
        text = positions[0] if positions.ndim == 3 and positions.shape[0] == 4 else positions  # M-RoPE's first of four
        packed = text.ndim == 2 and bool((text[:, 1:] <= text[:, :-1]).any())
    if packed:
        raise PrunekitError("several samples packed into one row cannot be pruned: give each a row, and a padding mask")
