"""Elements of a Keras variable whose gradient is known for every sample, and how they are chosen.

As in `rlbatch.signals.sample_layers`, every stride-th row and column belongs to a block, from an
offset that is drawn anew for each measured step: sums over it, times the product of its strides,
are unbiased for the whole. Strides and offsets are values of the traced step, no part of it: with
TensorFlow one trace serves all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

ops: Any = keras.ops  # its annotations name the tensors of every backend at once
View = Callable[[Any], Any]


@dataclass(frozen=True)
class Block:
    """Elements of a variable.

    Attributes:
        variable: Whose elements.
        view: Takes them out of a tensor that is shaped as the variable; any shape.
        factor: Elements of the variable for each of the block, on average over offsets.
        total: Their gradient: the sum over samples, shaped as the view.
        squares: Returns each sample's squared norm, shape (samples,), from the weight of each
            element, shaped as the view or a scalar.
    """

    variable: Any
    view: View
    factor: Any
    total: Any
    squares: Callable[[Any], Any]


def rows_block(variable: Any, view: View, factor: Any, rows: Any) -> Block:
    """Return a block of the samples' gradients themselves, (samples, ...) shaped as the view."""
    axes = tuple(range(1, len(rows.shape)))
    return Block(
        variable, view, factor, ops.sum(rows, 0), lambda w: ops.sum(ops.square(rows) * w, axes)
    )


def block_of_rows(variable: Any, view: View, factor: Any, parts: list[Any]) -> list[Block]:
    """Return the one of rows that are sums of those of several calls; none if it is not trained."""
    trained = variable is not None and variable.trainable
    return [rows_block(variable, view, factor, sum(parts[1:], parts[0]))] if trained else []


def outer_block(variable: Any, view: View, factor: Any, left: Any, right: Any) -> Block:
    """Return one of a product a sample, (samples, rows) with (samples, columns)."""

    def squares(weight: Any) -> Any:
        first, second = ops.square(left), ops.square(right)
        if not len(weight.shape):
            return weight * ops.sum(first, 1) * ops.sum(second, 1)
        return ops.sum(ops.matmul(first, weight) * second, 1)

    return Block(variable, view, factor, ops.matmul(ops.transpose(left), right), squares)


def tokens_block(variable: Any, view: View, factor: Any, tokens: Any, deltas: Any) -> Block:
    """Return one of rows of a table, which a sample looks up at several places.

    Its gradient of a row is the sum over these: the squared norm is a sum over pairs of places.

    Args:
        variable: The table.
        view: Of some of its columns.
        factor: Of the block.
        tokens: Rows, (samples, places).
        deltas: Gradients of what was looked up, (samples, places, columns).
    """
    rows = variable.shape[0]

    def squares(weight: Any) -> Any:
        weighted = deltas * (ops.take(weight, tokens, axis=0) if len(weight.shape) else weight)
        products = ops.matmul(weighted, ops.transpose(deltas, (0, 2, 1)))
        same = ops.equal(tokens[:, :, None], tokens[:, None, :])
        return ops.sum(products * ops.cast(same, products.dtype), (1, 2))

    flat = ops.reshape(deltas, (-1, ops.shape(deltas)[-1]))
    total = ops.segment_sum(flat, ops.reshape(tokens, (-1,)), num_segments=rows)
    return Block(variable, view, factor, total, squares)


class Draw:
    """Which elements of one layer's variables belong to blocks.

    With TensorFlow its numbers are tensors, whose values come with each step.

    Attributes:
        elements: About how many of a variable's to take; 0 where the layer was not drawn.
    """

    def __init__(self, row: Any) -> None:
        """Take the elements and, for each axis, a number in [0, 1)."""
        self.elements, self._places = row[0], (row[1], row[2])

    def slices(self, dims: Sequence[int], elements: Any) -> tuple[list[Any], list[Any]]:
        """Return a slice of each of at most two axes that leave about so many elements.

        The second list holds their strides, as numbers with a fraction.
        """
        found: dict[int, Any] = {}
        strides: dict[int, Any] = {}
        for left, axis in enumerate(sorted(range(len(dims)), key=lambda axis: dims[axis])):
            size = float(dims[axis])
            share = elements ** (1.0 / (len(dims) - left))
            stride = ceil(size / smaller(size, larger(1.0, share)))
            offset = smaller(floor(self._places[axis] * stride), stride - 1.0)
            found[axis] = slice(index(offset), None, index(stride))
            strides[axis] = stride
            elements = elements / ceil((size - offset) / stride)
        return [found[axis] for axis in range(len(dims))], [strides[a] for a in range(len(dims))]


def cut(tensor: Any, slices: Mapping[int, Any]) -> Any:
    """Return a part of a tensor, by the slices of some axes."""
    whole = slice(None)
    part = tensor[tuple(slices.get(axis, whole) for axis in range(len(tensor.shape)))]
    if keras.backend.backend() == "tensorflow":  # which knows no shape of what it cuts so
        part.set_shape([None if axis in slices else n for axis, n in enumerate(tensor.shape)])
    return part


def _numbers() -> Any:
    return ops if keras.backend.backend() == "tensorflow" else np


def smaller(left: Any, right: Any) -> Any:
    """Return the smaller of two numbers, or of tensors with TensorFlow."""
    return _numbers().minimum(left, right)


def larger(left: Any, right: Any) -> Any:
    """Return the larger of the two."""
    return _numbers().maximum(left, right)


def ceil(value: Any) -> Any:
    """Return the least whole number that is not below."""
    return _numbers().ceil(value)


def floor(value: Any) -> Any:
    """Return the largest whole number that is not above."""
    return _numbers().floor(value)


def index(value: Any) -> Any:
    """Return a whole number as an index."""
    return ops.cast(value, "int32") if keras.backend.backend() == "tensorflow" else int(value)


def product(dims: Sequence[Any]) -> Any:
    """Return a product of sizes, some of which may be known in the step only, as a float."""
    total: Any = 1.0
    for size in dims:
        total = total * (float(size) if isinstance(size, int) else ops.cast(size, "float32"))
    return total


def wide(tensor: Any) -> Any:
    """Return a tensor in single precision."""
    return ops.cast(tensor, "float32")
