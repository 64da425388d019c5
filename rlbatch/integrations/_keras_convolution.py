"""The samples' gradients of Keras's convolutions."""

from __future__ import annotations

import itertools
from typing import Any

import keras

from rlbatch.integrations._keras_blocks import (
    Block,
    Draw,
    View,
    block_of_rows,
    cut,
    index,
    larger,
    product,
    smaller,
    wide,
)
from rlbatch.integrations._keras_taps import Tap
from rlbatch.signals.sample_probe import WORK

ops: Any = keras.ops  # its annotations name the tensors of every backend at once


def convolution(tap: Tap, draw: Draw) -> list[Block]:
    """Return the blocks of a Conv1D or Conv2D: any stride, padding, dilation, number of groups."""
    layer, kernel = tap.layer, tap.layer._kernel
    taps, groups = int(product(kernel.shape[:-2])), layer.groups
    columns, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    deltas = [channels_last(layer, call.delta) for call in tap.calls]
    places = product(ops.shape(deltas[0])[:-1])
    elements = smaller(draw.elements, (WORK / places) ** 2) / float(taps * groups)
    (column, row), strides = draw.slices((columns, outputs), elements)
    rows: list[Any] = []
    sums: list[Any] = []
    for call, whole in zip(tap.calls, deltas, strict=True):
        size = ops.shape(whole)
        delta = wide(cut(ops.reshape(whole, (size[0], -1, groups, outputs)), {3: row}))
        delta = ops.transpose(delta, (0, 2, 1, 3))
        inputs = channels_last(layer, call.inputs)
        inputs = ops.reshape(inputs, (*ops.shape(inputs)[:-1], groups, columns))
        inputs = cut(inputs, {len(inputs.shape) - 1: column})
        seen = [_at_tap(layer, inputs, at, size[1:-1]) for at in _taps(layer)]
        # [samples, groups, columns, places] x [samples, groups, places, rows]
        parts = [ops.matmul(ops.transpose(x, (0, 2, 3, 1)), delta) for x in seen]
        rows.append(ops.stack(parts, 1))
        sums.append(ops.sum(delta, 2))

    def view(tensor: Any) -> Any:
        tensor = ops.reshape(tensor, (taps, columns, groups, outputs))
        return ops.transpose(cut(tensor, {1: column, 3: row}), (0, 2, 1, 3))

    bias: View = lambda tensor: cut(ops.reshape(tensor, (groups, outputs)), {1: row})  # noqa: E731
    found = block_of_rows(kernel, view, strides[0] * strides[1], rows)
    return found + block_of_rows(layer.bias, bias, strides[1], sums)


def channels_last(layer: Any, tensor: Any, *, shape: bool = False) -> Any:
    """Return a tensor, or its shape, with the channels behind the places."""
    rank = layer.rank
    order = [0, *range(2, 2 + rank), 1]
    if layer.data_format == "channels_last":
        return ops.shape(tensor) if shape else tensor
    sizes = ops.shape(tensor)
    return [sizes[axis] for axis in order] if shape else ops.transpose(tensor, order)


def _taps(layer: Any) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in layer.kernel_size)))


def _at_tap(layer: Any, inputs: Any, at: tuple[int, ...], places: Any) -> Any:
    """Return what each output place sees at one tap of the kernel, [samples, places, .., ..]."""
    sizes = ops.shape(inputs)
    reach = [
        dilation * (taps - 1)
        for dilation, taps in zip(layer.dilation_rate, layer.kernel_size, strict=True)
    ]
    if layer.padding != "valid":
        inputs = ops.pad(inputs, [(0, 0), *((size, size) for size in reach), (0, 0), (0, 0)])
    cuts: list[slice] = []
    for axis, (tap, span, stride) in enumerate(zip(at, reach, layer.strides, strict=True)):
        left: Any = 0
        if layer.padding == "causal":
            left = span
        elif layer.padding == "same":  # the odd one of a padding comes last
            lacking = (places[axis] - 1) * stride + span + 1 - sizes[1 + axis]
            left = index(larger(lacking, 0)) // 2
        first = tap * layer.dilation_rate[axis]
        first = first if layer.padding == "valid" else first + span - left
        cuts.append(slice(first, first + (places[axis] - 1) * stride + 1, stride))
    seen = wide(inputs[(slice(None), *cuts)])
    shape = ops.shape(seen)
    return ops.reshape(seen, (shape[0], -1, *shape[-2:]))
