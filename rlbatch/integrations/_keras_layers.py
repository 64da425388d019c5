"""Keras layers whose inputs and output gradients give the gradient of every single sample.

The identities are those of `rlbatch.signals.sample_layers`, which has the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from rlbatch.integrations._keras_blocks import (
    Block,
    Draw,
    View,
    block_of_rows,
    cut,
    larger,
    outer_block,
    product,
    smaller,
    tokens_block,
    wide,
)
from rlbatch.integrations._keras_convolution import channels_last, convolution
from rlbatch.integrations._keras_taps import Call, Tap
from rlbatch.signals.sample_probe import MOST_WORK, WORK

# Their annotations name the tensors of every backend at once.
ops: Any = keras.ops
layers: Any = keras.layers

Blocks = Callable[[Tap, Draw], list[Block]]


def blocks_of(layer: Any) -> Blocks | None:
    """Return what computes the blocks of a layer's calls; None where it is of no known kind.

    Of a kind are layers that are called by Keras's own code, also of derived classes.
    """
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return None
    call = getattr(type(layer), "call", None)
    kinds: list[tuple[Any, Callable[[Any], bool], Blocks]] = [
        (layers.Dense, _always, _dense),
        (layers.EinsumDense, lambda layer: einsum_axes(layer) is not None, _einsum),
        (layers.Conv1D, _always, convolution),
        (layers.Conv2D, _always, convolution),
        (layers.Embedding, _always, _embedding),
        (layers.LayerNormalization, lambda layer: not layer.rms_scaling, _normalisation),
        (layers.RMSNormalization, _always, _normalisation),
        (layers.GroupNormalization, _always, _normalisation),
        (layers.BatchNormalization, lambda layer: not layer.renorm, _normalisation),
    ]
    for kind, fits, blocks in kinds:
        if isinstance(layer, kind) and call is kind.call:
            return blocks if fits(layer) else None
    return None


def places_fit(tap: Tap) -> list[Any]:
    """Return conditions under which a layer's calls are small enough to be looked at."""
    layer = tap.layer
    if isinstance(layer, layers.Embedding):  # pairs of places
        shapes = [ops.shape(call.inputs) for call in tap.calls]
        return [product(shape) * product(shape[1:]) <= MOST_WORK for shape in shapes]
    if hasattr(layer, "kernel_size"):
        taps = product(layer.kernel_size)
        deltas = [channels_last(layer, call.delta, shape=True) for call in tap.calls]
        return [product(shape[:-1]) * taps <= MOST_WORK for shape in deltas]
    return []


def leads_with(samples: Any, call: Call, layer: Any) -> list[Any]:
    """Return conditions under which the first axis of a call's inputs counts the samples.

    Two equal ones at the front do not say which: a sequence as long as the batch may come first.
    """
    shape = ops.shape(call.inputs)
    leading = shape if isinstance(layer, layers.Embedding) else shape[:-1]
    if isinstance(layer, (layers.LayerNormalization, layers.RMSNormalization)):
        axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
        axes = sorted(axis % len(shape) for axis in axes)
        leading = shape[: axes[0]] if axes == list(range(axes[0], len(shape))) else ()
    elif hasattr(layer, "kernel_size") or isinstance(
        layer, (layers.BatchNormalization, layers.GroupNormalization)
    ):
        leading = shape[:1]
    if not leading:
        return [False]
    return [leading[0] == samples, *(size != samples for size in leading[1:2])]


def _always(layer: Any) -> bool:
    return True


# -- linear maps --


def _dense(tap: Tap, draw: Draw) -> list[Block]:
    sequence = any(len(call.inputs.shape) > 2 for call in tap.calls)
    pairs = [(_flat(call.inputs), _flat(call.delta)) for call in tap.calls]
    return _map(tap.layer, draw, pairs, lambda tensor: tensor, sequence=sequence)


def einsum_axes(layer: Any) -> tuple[str, str, str, str] | None:
    """Return the places, inputs and outputs of an EinsumDense and its kernel's axes, by letters.

    None where the first axis of inputs and outputs is not the samples', or an axis is shared by
    all three, or there is an ellipsis.
    """
    left, _, outputs = layer.equation.replace(" ", "").partition("->")
    inputs, _, kernel = left.partition(",")
    if "." in layer.equation or inputs[:1] != outputs[:1] or inputs[:1] in kernel:
        return None
    contracted = "".join(axis for axis in kernel if axis in inputs)
    made = "".join(axis for axis in kernel if axis in outputs)
    places = "".join(axis for axis in inputs[1:] if axis not in kernel)
    whole = set(places + made) == set(outputs[1:]) and len(contracted + made) == len(kernel)
    return (places, contracted, made, kernel) if whole and contracted and made else None


def _einsum(tap: Tap, draw: Draw) -> list[Block]:
    layer = tap.layer
    axes = einsum_axes(layer)
    assert axes is not None  # noqa: S101 - `blocks_of` kept no others
    places, contracted, made, kernel = axes
    left, _, outputs = layer.equation.replace(" ", "").partition("->")
    inputs, batch = left.partition(",")[0], left[0]
    sizes = dict(zip(kernel, layer._kernel.shape, strict=True))

    def laid_out(tensor: Any, order: str, last: str) -> Any:
        tensor = ops.transpose(tensor, [order.index(axis) for axis in batch + places + last])
        return ops.reshape(
            tensor, (ops.shape(tensor)[0], -1, int(product([sizes[a] for a in last])))
        )

    def view(tensor: Any) -> Any:
        if len(tensor.shape) != len(kernel):  # the bias
            return ops.reshape(tensor, (-1,))
        tensor = ops.transpose(tensor, [kernel.index(axis) for axis in contracted + made])
        return ops.reshape(tensor, (int(product([sizes[a] for a in contracted])), -1))

    pairs = [
        (laid_out(call.inputs, inputs, contracted), laid_out(call.delta, outputs, made))
        for call in tap.calls
    ]
    return _map(layer, draw, pairs, view, sequence=True)


def _map(
    layer: Any, draw: Draw, pairs: list[tuple[Any, Any]], view: View, *, sequence: bool
) -> list[Block]:
    """Return the blocks of a linear map, from [samples, places, features] of each call."""
    columns, rows = pairs[0][0].shape[-1], pairs[0][1].shape[-1]
    elements = draw.elements * 8
    if sequence:
        places = larger(product(ops.shape(pairs[0][0])[:2]), 1.0)
        elements = smaller(draw.elements, (WORK / places) ** 2)
    (column, row), strides = draw.slices((columns, rows), elements)
    factor, found = strides[0] * strides[1], list[Block]()
    pairs = [
        (wide(cut(inputs, {2: column})), wide(cut(delta, {2: row}))) for inputs, delta in pairs
    ]
    sums = [ops.sum(delta, 1) for _, delta in pairs]
    chosen: View = lambda tensor: cut(view(tensor), {0: column, 1: row})  # noqa: E731
    if layer._kernel.trainable:
        if len(pairs) == 1 and not sequence:
            inputs, delta = pairs[0]
            found.append(outer_block(layer._kernel, chosen, factor, inputs[:, 0], delta[:, 0]))
        else:
            parts = [ops.matmul(ops.transpose(a, (0, 2, 1)), delta) for a, delta in pairs]
            found += block_of_rows(layer._kernel, chosen, factor, parts)
    if layer.bias is not None and product(layer.bias.shape) == rows:
        found += block_of_rows(layer.bias, lambda t: cut(view(t), {0: row}), strides[1], sums)
    return found


def _flat(tensor: Any) -> Any:
    """Return [samples, ..., features] as [samples, places, features]."""
    return ops.reshape(tensor, (ops.shape(tensor)[0], -1, tensor.shape[-1]))


# -- tables --


def _embedding(tap: Tap, draw: Draw) -> list[Block]:
    table = tap.layer._embeddings
    tokens = [_tokens(call.inputs) for call in tap.calls]
    deltas = [_flat(call.delta) for call in tap.calls]
    places = larger(float(table.shape[0]), product(ops.shape(tokens[0])))
    (column,), (stride,) = draw.slices((table.shape[1],), larger(WORK / places, 1.0))
    chosen = [wide(cut(delta, {2: column})) for delta in deltas]
    view: View = lambda tensor: cut(tensor, {1: column})  # noqa: E731
    together = ops.concatenate(tokens, 1), ops.concatenate(chosen, 1)
    return [tokens_block(table, view, stride, *together)] if table.trainable else []


def _tokens(inputs: Any) -> Any:
    return ops.reshape(ops.cast(inputs, "int32"), (ops.shape(inputs)[0], -1))


# -- normalisation --


def _normalisation(tap: Tap, draw: Draw) -> list[Block]:
    """Of scale and shift. Batch normalisation couples samples: of each sample's outputs."""
    layer = tap.layer
    is_rms = isinstance(layer, layers.RMSNormalization)
    gamma, beta = (layer.scale, None) if is_rms else (layer.gamma, layer.beta)
    known: Any = beta if gamma is None else gamma
    channels = int(product(known.shape))
    places = product(ops.shape(tap.calls[0].inputs)) / float(channels)
    (chosen,), (stride,) = draw.slices((channels,), smaller(draw.elements, WORK / places))
    scales: list[Any] = []
    shifts: list[Any] = []
    for call in tap.calls:
        normalised, delta = _normalised(layer, call, channels, chosen)
        scales.append(ops.sum(delta * normalised, 1))
        shifts.append(ops.sum(delta, 1))
    view: View = lambda tensor: cut(ops.reshape(tensor, (-1,)), {0: chosen})  # noqa: E731
    found = block_of_rows(gamma, view, stride, scales)
    return found + block_of_rows(beta, view, stride, shifts)


def _normalised(layer: Any, call: Call, channels: int, chosen: Any) -> tuple[Any, Any]:
    """Return the inputs before scale and shift, and the gradient: [samples, places, chosen]."""
    inputs, delta = call.inputs, call.delta
    over_last = isinstance(layer, (layers.LayerNormalization, layers.RMSNormalization))
    if not over_last:
        axis = layer.axis % len(inputs.shape)
        order = [*(other for other in range(len(inputs.shape)) if other != axis), axis]
        inputs, delta = (ops.transpose(tensor, order) for tensor in (inputs, delta))
    inputs, delta = _last(inputs, channels), wide(cut(_last(delta, channels), {2: chosen}))
    if isinstance(layer, layers.BatchNormalization):  # each channel is for itself
        inputs = wide(cut(inputs, {2: chosen}))
        mean, variance = (wide(cut(ops.convert_to_tensor(v), {0: chosen})) for v in _moved(layer))
        if call.training and layer.trainable:
            mean, variance = ops.moments(inputs, (0, 1), keepdims=True)
        return (inputs - mean) * ops.rsqrt(variance + layer.epsilon), delta
    inputs = wide(inputs)
    normalised = _by_root(inputs, -1, layer) if over_last else _by_groups(inputs, layer)
    return cut(normalised, {2: chosen}), delta


def _moved(layer: Any) -> tuple[Any, Any]:
    return layer.moving_mean, layer.moving_variance


def _by_root(inputs: Any, axes: Any, layer: Any) -> Any:
    """Return inputs over their root mean square, of all but RMSNormalization around their mean."""
    if isinstance(layer, layers.RMSNormalization):
        return inputs * ops.rsqrt(ops.mean(ops.square(inputs), axes, keepdims=True) + layer.epsilon)
    mean, variance = ops.moments(inputs, axes, keepdims=True)
    return (inputs - mean) * ops.rsqrt(variance + layer.epsilon)


def _by_groups(inputs: Any, layer: Any) -> Any:
    shape = ops.shape(inputs)
    grouped = ops.reshape(inputs, (*shape[:2], layer.groups, -1))
    return ops.reshape(_by_root(grouped, (1, 3), layer), shape)


def _last(tensor: Any, channels: int) -> Any:
    return ops.reshape(tensor, (ops.shape(tensor)[0], -1, channels))
