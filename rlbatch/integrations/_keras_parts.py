"""Looks, once in a run, at how the loss of a Keras model follows from its samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import torch

from rlbatch.control.random_state import RandomState
from rlbatch.integrations._keras_means import divisors, weight_of
from rlbatch.integrations._keras_training import on_host
from rlbatch.integrations._keras_weights import frozen

ops: Any = keras.ops  # its annotations name the tensors of every backend at once
tree: Any = keras.tree

_TOLERANCE = 1e-4  # relative; single precision stays far below
_FEWEST = 2  # samples of a piece: Keras drops an axis of one at times
_HALF = 2e-2  # where layers compute in half precision
_COPIES = 3  # of samples, whose loss tells a sum from a mean
_LINEAR = 1.9  # times the growth by the second copy is that by two; a logarithm's is 1.6

Cut = Callable[[Any], Any]


def warn_about_parts(model: Any, data: Any, size: int) -> None:
    """Warn where the loss of a micro-batch is no weighted mean of those of two pieces of it.

    Nothing is trained, and what changed is put back. What cannot be evaluated tells nothing.

    Args:
        model: Compiled.
        data: A micro-batch, as `train_step` gets it.
        size: Its samples.
    """
    if size < 2 * _FEWEST:
        return
    cut = max(size // 3, _FEWEST)
    pieces = [slice(None), slice(0, cut), slice(cut, None)]
    seen = _losses(model, data, [_slicer(piece) for piece in pieces], [size, cut, size - cut])
    if seen is None:
        return
    whole, first, rest = seen
    weights = first[1] + rest[1]
    together = (first[0] * first[1] + rest[0] * rest[1]) / weights if weights else math.nan
    difference, scale = abs(whole[0] - together), max(abs(whole[0]), abs(together))
    if difference > _tolerance(model) * scale:
        warnings.warn(
            f"rlbatch: a batch is divided, and its parts do not add up: the loss of {size} samples "
            f"is {whole[0]:.6g}, and the mean of its parts' {together:.6g}. Let each loss return a "
            "value for each sample. A loss that compares the samples of a batch cannot be divided: "
            "set divisible=False, or leave out micro_batch_size.",
            RuntimeWarning,
            stacklevel=2,
        )


def warn_about_sum(model: Any, data: Any, size: int) -> None:
    """Warn where the loss of a batch, or a term of it, is a sum over samples.

    Some samples are evaluated once, twice and three times over: a mean stays what it is, and a sum
    grows by as much with each copy. No more samples are evaluated at once than the batch has.

    Args:
        model: Compiled.
        data: An undivided batch, as `train_step` gets it.
        size: Its samples.
    """
    few = size // _COPIES
    if few < _FEWEST:
        return
    times = range(1, _COPIES + 1)
    seen = _losses(model, data, [_repeater(few, n) for n in times], [few * n for n in times])
    if seen is None:
        return
    once, twice, thrice = (loss for loss, _ in seen)
    scale = max(abs(once), abs(twice), abs(thrice))
    by_one, by_two = abs(twice - once), abs(thrice - once)
    if by_one > 10 * _tolerance(model) * scale and by_two >= _LINEAR * by_one:
        warnings.warn(
            "rlbatch: the loss, or a term of it, is a sum over samples: with the batch size its "
            "gradient grows, and with it the step that the optimizer makes. Let loss functions "
            "return a value for each sample and add_loss take a mean, and multiply the learning "
            "rate by your batch size.",
            RuntimeWarning,
            stacklevel=2,
        )


def _slicer(piece: slice) -> Cut:
    # Copies: Keras writes the mask into sample weights, with torch in place.
    return lambda t: ops.copy(t[piece])


def _repeater(few: int, times: int) -> Cut:
    return lambda t: ops.concatenate([t[:few]] * times, 0)


def _tolerance(model: Any) -> float:
    half = "float16" in str(model.dtype_policy.compute_dtype)
    return _HALF if half else _TOLERANCE


def _losses(
    model: Any, data: Any, cuts: list[Cut], sizes: list[int]
) -> list[tuple[float, float]] | None:
    """Return the losses of parts of a batch, and what each is a mean over.

    None where they cannot be evaluated, or are random: a model may draw numbers in its loss.
    """
    with _put_back(model):
        try:
            seen = [
                _loss(model, tree.map_structure(cut, data), size)
                for cut, size in zip([*cuts, cuts[0]], [*sizes, sizes[0]], strict=True)
            ]
        except Exception:  # a compute_loss or a call of another kind
            return None
    again = seen.pop()[0]
    return seen if math.isclose(again, seen[0][0], rel_tol=_TOLERANCE / 10) else None


@contextmanager
def _put_back(model: Any) -> Generator[None]:
    """Put metrics, statistics and the states of random generators back behind the block."""
    untouched = frozen(model) | {id(variable) for variable in model.trainable_variables}
    known = {id(v): v for v in [*model.variables, *model.metrics_variables]}
    kept = [(v, ops.copy(v)) for key, v in known.items() if key not in untouched]
    random = RandomState.now()
    try:
        yield
    finally:
        random.restore()
        for variable, value in kept:
            variable.assign(value)


def _loss(model: Any, data: Any, samples: int) -> tuple[float, float]:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    torch_backend = keras.backend.backend() == "torch"
    with torch.no_grad() if torch_backend else nullcontext(), divisors() as found:
        # As Keras's own steps call what takes no `training`.
        predicted = model(x, training=False) if model._call_has_training_arg else model(x)
        loss = model._compute_loss(
            x=x, y=y, y_pred=predicted, sample_weight=sample_weight, training=False
        )
    weight = weight_of(found)
    return float(on_host(loss)), float(samples if weight is None else on_host(weight))
