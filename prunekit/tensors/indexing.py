"""Gather and scatter of tokens in batches whose samples have different numbers of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.errors import PrunekitError


def ragged_index(mask: torch.Tensor, size: int, pad_left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the True entries of each row of a mask, in order.

    Args:
        mask: bool [B, S].
        size: M, at most S; entries beyond it are left out. A number of the host, so that nothing waits for the device.
        pad_left: pad rows with fewer entries at the start instead of the end.

    Returns:
        index [B, M], 0 where padded, and valid [B, M], which is False where padded.
    """
    places_M, count_B1 = torch.arange(size, device=mask.device), mask.sum(1, keepdim=True)
    if pad_left:
        order_BM = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - size :]
        valid_BM = places_M >= size - count_B1
    else:
        order_BM = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        valid_BM = places_M < count_B1
    return order_BM.masked_fill(~valid_BM, 0), valid_BM


def on_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Whole numbers of the host as a long tensor [len(values)], without making the host wait for the device."""
    if device.type == "cpu":
        return torch.tensor(values)
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], device=device)
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def gather_tokens(x: torch.Tensor, index: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """The tokens of each sample at an index.

    Args:
        x: [.., B, S, ..]; its token axis ``axis`` follows its batch axis.
        index: long [B, M], on any device.
        axis: the token axis of x.

    Returns:
        [.., B, M, ..] on the device of x.
    """
    index = index.to(x.device)  # layers of one model may live on several devices
    sample_B1 = torch.arange(index.shape[0], device=index.device)[:, None]
    if axis == 1:
        return x[sample_B1, index]
    return x.movedim((axis - 1, axis), (0, 1))[sample_B1, index].movedim((0, 1), (axis - 1, axis))


def scatter_where(
    values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None, size: int, fill: float = 0
) -> torch.Tensor:
    """Write the valid values of each sample to their slots of a new sequence: the inverse of ``gather_tokens``.

    ``scatter_where(valid, index, valid, size)`` marks the slots themselves.

    Args:
        values: [B, M, .], of any type.
        index: slots, long [B, M], arbitrary where not valid; where two valid ones are equal either value is written.
        valid: bool [B, M]; None if all are.
        size: S, how many slots the new sequence has.
        fill: what stands in the other slots.

    Returns:
        [B, S, .] of the type of values, on their device.

    Raises:
        PrunekitError: if values, index and valid differ in B or M.
    """
    longer = values.new_full((len(values), size + 1, *values.shape[2:]), fill)
    return _write(longer, values, index, valid)


def put_where(
    onto: torch.Tensor, values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None
) -> torch.Tensor:
    """``scatter_where`` over a sequence that exists: the other slots keep what stands in them.

    Args:
        onto: [B, S, .]; it is not changed itself.
        values: [B, M, .], cast to the type of ``onto``.
        index, valid: as in ``scatter_where``.

    Returns:
        [B, S, .] of the type of ``onto``.

    Raises:
        PrunekitError: if values, index and valid differ in B or M.
    """
    longer = torch.cat([onto, onto.new_zeros(len(onto), 1, *onto.shape[2:])], dim=1)
    return _write(longer, values.to(onto), index, valid)


def _write(longer: torch.Tensor, values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Values [B, M, .] at their slots of ``longer`` [B, S + 1, .], whose last slot takes the rest: [B, S, .]."""
    shapes = [values.shape[:2], index.shape] + ([] if valid is None else [valid.shape])
    if any(shape != shapes[0] for shape in shapes):
        raise PrunekitError(f"values, index and valid must agree in [B, M], not {[tuple(shape) for shape in shapes]}")
    spare, index = longer.shape[1] - 1, index.to(longer.device)
    if valid is not None:
        index = index.masked_fill(~valid.to(longer.device), spare)
    sample_B1 = torch.arange(len(index), device=longer.device)[:, None]
    return longer.index_put((sample_B1, index), values)[:, :spare]
