"""Whether the loss of a batch can be divided into parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-3  # of single precision


def check_divisible(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    weight: Callable[[Any], Any] | None = None,
    tolerance: float = _TOLERANCE,
) -> float:
    """Compare a batch's gradient with that of its two halves, weighted as a divided step is.

        check_divisible(model, lambda model, batch: loss_fn(model(batch[0]), batch[1]), batch)

    The model runs as in an evaluation (dropout and batch normalisation make parts of their own),
    its gradients and torch's random numbers stay as they are.

    Args:
        model: What is trained.
        loss_fn: Returns the mean loss of a batch, from the model and the batch.
        batch: Tensors whose first dimension are the samples, in lists, tuples or mappings.
        weight: Returns what the loss of a batch is the mean of; None for its samples.
        tolerance: Largest relative error that is taken for rounding.

    Returns:
        The relative error of the gradient.

    Raises:
        AssertionError: It is larger than the tolerance.
    """
    samples = _samples(batch)
    cuts = (0, samples - samples // 3, samples)
    parts = [_part(batch, start, end) for start, end in pairwise(cuts)]
    weights = [float(weight(part)) if weight else float(_samples(part)) for part in parts]
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            expected = _gradient(model, loss_fn(model, batch))
            gradients = [_gradient(model, loss_fn(model, part)) for part in parts]
    finally:
        model.train(training)
    pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if w > 0.0]
    found = sum((w * g for w, g in pairs), torch.zeros_like(expected)) / max(sum(weights), 1e-300)
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    if not error <= tolerance:
        raise AssertionError(
            f"The gradients of two parts of a batch do not add up to that of the batch: relative "
            f"error {error:.3g}. Give controller.backward(loss, weight=...) what the loss is the "
            "mean of, or set divisible=False where it compares the samples of a batch."
        )
    return error


def _gradient(model: nn.Module, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = (
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    )
    return torch.cat([g.reshape(-1) for g in filled])


def _samples(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return _samples(next(iter(cast("Sequence[Any]", values))))


def _part(batch: Any, start: int, end: int) -> Any:
    if isinstance(batch, Mapping):
        entries = cast("Mapping[Any, Any]", batch).items()
        return {key: _part(value, start, end) for key, value in entries}
    if isinstance(batch, (list, tuple)):
        kind = type(cast("list[Any]", batch))
        return kind(_part(value, start, end) for value in cast("list[Any]", batch))
    return batch[start:end]
