"""What the loss of a Keras batch is the mean of: samples, values that are not masked, weights."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from rlbatch.errors import ConfigurationError

ops: Any = keras.ops  # its annotations name the tensors of every backend at once


@contextmanager
def divisors() -> Generator[list[Any]]:
    """Collect, within the block, what each loss of the model is divided by.

    None stands for the number of its values, to which the samples are in proportion. Keras divides
    a masked loss by the values that count, and one of `mean_with_sample_weight` by their weights.
    """
    module = _module()
    original: Callable[..., Any] = module.reduce_weighted_values
    found: list[Any] = []

    def reduce_weighted_values(
        values: Any,
        sample_weight: Any = None,
        mask: Any = None,
        reduction: Any = "sum_over_batch_size",
        dtype: Any = None,
    ) -> Any:
        found.append(_divisor(module, sample_weight, mask, reduction))
        return original(values, sample_weight, mask, reduction, dtype)

    module.reduce_weighted_values = reduce_weighted_values
    try:
        yield found
    finally:
        module.reduce_weighted_values = original


def weight_of(found: Sequence[Any]) -> Any:
    """Return what a batch's loss is the mean of; None: its samples.

    Args:
        found: By `divisors`.

    Raises:
        ConfigurationError: There are several losses, which are means of different things.
    """
    if all(divisor is None for divisor in found):
        return None
    if len(found) > 1:
        raise ConfigurationError(
            f"The model has {len(found)} losses that are means over masks or weights of their own, "
            "and the parts of a batch can be weighted by one of them only. Leave out "
            "micro_batch_size, or set divisible=False."
        )
    return found[0]


def scaled(gradient: list[Any], factor: Any) -> list[Any]:
    """Return a gradient times a number or a scalar tensor; None stays."""
    if isinstance(factor, float):
        return [None if g is None else g * factor for g in gradient]
    return [None if g is None else g * ops.cast(factor, g.dtype) for g in gradient]


def _divisor(module: Any, sample_weight: Any, mask: Any, reduction: Any) -> Any:
    if reduction == "mean_with_sample_weight":
        if sample_weight is None and mask is None:
            return None
        weight = None if sample_weight is None else ops.cast(sample_weight, "float32")
        return ops.sum(module.apply_mask(weight, mask, "float32", reduction))
    return None if mask is None else ops.sum(ops.cast(mask, "float32"))


def _module() -> Any:
    """Return the module by whose function all of Keras's losses are reduced."""
    try:
        from keras.src.losses import loss as module
    except ImportError:
        module = None
    if not all(hasattr(module, name) for name in ("reduce_weighted_values", "apply_mask")):
        raise ConfigurationError(
            f"Expected a Keras whose losses tell what they are means of, got {keras.__version__}. "
            "Leave out micro_batch_size, or install keras>=3.9,<4."
        )
    return module
