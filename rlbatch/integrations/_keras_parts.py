"""A look, once in a run, whether the parts of a divided Keras batch add up to its loss."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from typing import Any

import keras
import torch

from rlbatch.integrations._keras_means import divisors, weight_of
from rlbatch.integrations._keras_training import on_host

ops: Any = keras.ops  # its annotations name the tensors of every backend at once
tree: Any = keras.tree

_TOLERANCE = 1e-4  # relative; single precision stays far below
_FEWEST = 2  # samples of a piece: Keras drops an axis of one at times
_HALF = 2e-2  # where layers compute in half precision


def warn_about_parts(model: Any, data: Any, size: int) -> None:
    """Warn where the loss of a micro-batch is no weighted mean of those of two pieces of it.

    Nothing is trained and no random number is drawn. What cannot be evaluated tells nothing.

    Args:
        model: Compiled.
        data: A micro-batch, as `train_step` gets it.
        size: Its samples.
    """
    if size < 2 * _FEWEST:
        return
    cut = max(size // 3, _FEWEST)
    metrics = [(variable, ops.copy(variable)) for variable in model.metrics_variables]
    try:
        whole, first, rest = (
            # Copies: Keras writes the mask into sample weights, with torch in place.
            _loss(model, tree.map_structure(lambda t, s=piece: ops.copy(t[s]), data), piece, size)
            for piece in (slice(None), slice(0, cut), slice(cut, None))
        )
    except Exception:  # a compute_loss or a call of another kind
        return
    finally:
        for variable, value in metrics:
            variable.assign(value)
    weights = first[1] + rest[1]
    together = (first[0] * first[1] + rest[0] * rest[1]) / weights if weights else math.nan
    difference, scale = abs(whole[0] - together), max(abs(whole[0]), abs(together))
    half = "float16" in str(model.dtype_policy.compute_dtype)
    if difference > (_HALF if half else _TOLERANCE) * scale:
        warnings.warn(
            f"rlbatch: a batch is divided, and its parts do not add up: the loss of {size} samples "
            f"is {whole[0]:.6g}, and the mean of its parts' {together:.6g}. Let each loss return a "
            "value for each sample. A loss that compares the samples of a batch cannot be divided: "
            "set divisible=False, or leave out micro_batch_size.",
            RuntimeWarning,
            stacklevel=2,
        )


def _loss(model: Any, data: Any, piece: slice, size: int) -> tuple[float, float]:
    """Return the loss of a piece of a batch, and what it is a mean over."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    torch_backend = keras.backend.backend() == "torch"
    with torch.no_grad() if torch_backend else nullcontext(), divisors() as found:
        predicted = model(x, training=False)
        loss = model.compute_loss(
            x=x, y=y, y_pred=predicted, sample_weight=sample_weight, training=False
        )
    weight = weight_of(found)
    samples = len(range(size)[piece])
    return float(on_host(loss)), float(samples if weight is None else on_host(weight))
