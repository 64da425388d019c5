"""Whole lists of tensors in one call: the part of torch's fused list operations that is used here.

Torch's own optimizers are built on these functions, but they are not declared public. They are
named in this one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ops: Any = torch


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is sharded, any other as it is."""
    shard: Any = getattr(tensor, "to_local", None)  # of a DTensor
    return tensor if shard is None else shard()


def multiply(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Return products, one by one."""
    return list(_ops._foreach_mul(list(left), list(right)))


def scaled(values: Sequence[Tensor], factor: float | Tensor = 1.0) -> list[Tensor]:
    """Return multiples by one factor, in new memory."""
    if isinstance(factor, Tensor) and len({value.device for value in values}) > 1:
        return [value * factor.to(value.device, non_blocking=True) for value in values]
    return list(_ops._foreach_mul(list(values), factor))


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Return differences, one by one."""
    return list(_ops._foreach_sub(list(left), list(right)))


def divide(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Return quotients, one by one."""
    return list(_ops._foreach_div(list(left), list(right)))


def add(left: Sequence[Tensor], number: float) -> list[Tensor]:
    """Return sums with one number."""
    return list(_ops._foreach_add(list(left), number))


def square_root(values: Sequence[Tensor]) -> list[Tensor]:
    """Return square roots."""
    return list(_ops._foreach_sqrt(list(values)))


def sign(values: Sequence[Tensor]) -> list[Tensor]:
    """Return signs: -1, 0 or 1."""
    return list(_ops._foreach_sign(list(values)))


def scale_(values: Sequence[Tensor], factor: float) -> None:
    """Multiply by a number, in place."""
    if values:
        _ops._foreach_mul_(list(values), factor)


def copy_(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into existing tensors of the same shapes.

    Torch copies tensors of one device and type together, and else one by one. An optimizer's step
    counters lie on the host.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, value in zip(into, values, strict=True):
        kinds = (target.device, target.dtype, value.device, value.dtype)
        targets, sources = groups.setdefault(kinds, ([], []))
        targets.append(target)
        sources.append(value)
    for targets, sources in groups.values():
        _ops._foreach_copy_(targets, sources)


def together(scalars: Sequence[Tensor]) -> Tensor:
    """Return scalars as one vector on the first one's device, in the widest type it has."""
    first = scalars[0]
    device, kind = first.device, first.dtype
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if all(scalar.dtype == kind and scalar.device == device for scalar in scalars):
        # One conversion for all: on a device each is a kernel to launch.
        return torch.stack([s if s.ndim == 0 else s.reshape(()) for s in scalars]).to(dtype)
    return torch.stack([scalar.reshape(()).to(device, dtype) for scalar in scalars])


def squared_norms(vectors: Sequence[Tensor]) -> Tensor:
    """Return the squared norm of each tensor, shape (tensors,), on the first one's device."""
    return together(_ops._foreach_norm(list(vectors))).square()


def squared_norm(vector: Sequence[Tensor]) -> Tensor:
    """Return the squared norm over all tensors, a scalar on the first one's device."""
    return squared_norms(vector).sum()


def read(*lists: list[Tensor]) -> NDArray[np.float64]:
    """Return all scalars as one array, moved from the device together."""
    parts = [together(values) for values in lists if values]
    if not parts:
        return np.empty(0)
    if len({part.device for part in parts}) > 1:  # a resumed chunk began on the host
        parts = [part.cpu() for part in parts]
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    return values.cpu().numpy().astype(np.float64)
