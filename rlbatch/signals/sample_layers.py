"""Layers whose inputs and output gradients give the gradient of every single sample.

A backward pass adds the samples' gradients up at once. But the gradient of a linear map's weights
is a sum over samples of products of what goes in and of the gradient that comes back, and both can
be seen from outside. So a block of elements of a parameter, some rows and some columns of it, has
its gradient computed for each sample at a small part of the backward pass's cost (Goodfellow 2015,
"Efficient Per-Example Gradient Computations", arXiv:1510.01799, for the products; Li et al. 2022,
arXiv:2110.05679, section 4, for sequences; Gray et al. 2024, arXiv:2411.00999, for normalisation).

Every `stride`-th row and column belongs to a block, from an offset that changes with each
measurement: sums over the block, times the product of its strides, are then unbiased for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlbatch.signals.sample_blocks import Block, OuterBlock, RowsBlock, TokensBlock, View

WORK = 1 << 18
"""About how many numbers of a layer's inputs, and as many of its outputs' gradients, are touched.

One channel at each place of each sample is the least, and a layer is left out where that is more
than `_MOST_WORK`.
"""

_MOST_WORK = 1 << 24


class LayerProbe:
    """Watches one layer for one step.

    Attributes:
        usable: False once it was called in a way from which samples cannot be told apart.
        unscaling: What gradients are to be multiplied by; None for 1.
        calls: Two tensors of each call whose gradient has come back.
    """

    def __init__(self, layer: nn.Module, samples: int, elements: int, rng: Random) -> None:
        """Watch a layer.

        Args:
            layer: Of a kind in `PROBES`.
            samples: Of the step.
            elements: About how many of a parameter's elements to take.
            rng: Draws the offsets.
        """
        self.layer: Any = layer
        self.samples, self.elements, self._rng = samples, elements, rng
        self.usable = True
        self.unscaling: Tensor | None = None
        self.calls: list[tuple[Tensor, Tensor]] = []

    def keep(self, inputs: Tensor) -> Tensor | None:
        """Return what is needed of a call's input, or None where samples cannot be told apart."""
        raise NotImplementedError

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """Take the gradient with respect to the call's output."""
        raise NotImplementedError

    def blocks(self) -> list[Block]:
        """Return what the calls have shown, of the parameters that are trained."""
        raise NotImplementedError

    def _slices(self, dims: Sequence[int], elements: float) -> tuple[list[slice], float]:
        """Return slices that leave about so many elements, and the product of their strides."""
        strides = [1] * len(dims)
        while True:
            left = [-(-size // stride) for size, stride in zip(dims, strides, strict=True)]
            widest = max(range(len(dims)), key=left.__getitem__)
            if math.prod(left) <= elements or left[widest] == 1:
                break
            strides[widest] = min(2 * strides[widest], dims[widest])
        slices = [slice(self._rng.randrange(stride), None, stride) for stride in strides]
        return slices, float(math.prod(strides))

    def _unscaled(self, delta: Tensor) -> Tensor:
        """Divide the scale out at once: squares of scaled gradients could overflow."""
        delta = _wide(delta)
        if self.unscaling is None:
            return delta
        return delta * self.unscaling.to(delta.device, non_blocking=True)

    def _trained(self, name: str) -> nn.Parameter | None:
        parameter = self.layer._parameters.get(name)
        return parameter if parameter is not None and parameter.requires_grad else None


class LinearProbe(LayerProbe):
    """`nn.Linear`, also on sequences: [samples, ..., features]."""

    _rows: slice | None = None
    _columns: slice
    _factors: tuple[float, float]

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        if not _leads_with(self.samples, inputs.shape[:-1]):
            return None
        inputs = inputs.reshape(self.samples, -1, inputs.shape[-1])
        if self._rows is None:
            # The products of a single call without a sequence need not be multiplied out.
            places = inputs.shape[1]
            wide = (WORK / (self.samples * places)) ** 2
            elements = self.elements * 8 if places == 1 else min(self.elements, wide)
            (self._rows, self._columns), both = self._slices(self.layer.weight.shape, elements)
            self._factors = both, float(self._rows.step)
        return _copied(inputs[:, :, self._columns], self._columns.step > 1)

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """See the base class."""
        assert self._rows is not None  # noqa: S101 - set by `keep`
        delta = delta.reshape(self.samples, -1, delta.shape[-1])[:, :, self._rows]
        self.calls.append((_wide(kept), self._unscaled(delta)))

    def blocks(self) -> list[Block]:
        """See the base class."""
        rows, columns = self._rows, self._columns
        found: list[Block] = []
        weight, bias = self._trained("weight"), self._trained("bias")
        if weight is not None:
            found.append(self._weight_block(weight, lambda tensor: tensor[rows, columns]))
        if bias is not None:
            sums = _sum([delta.sum(1) for _, delta in self.calls])
            found.append(RowsBlock(bias, lambda tensor: tensor[rows], self._factors[1], sums))
        return found

    def _weight_block(self, weight: nn.Parameter, view: View) -> Block:
        factor = self._factors[0]
        if len(self.calls) == 1 and self.calls[0][0].shape[1] == 1:
            inputs, delta = self.calls[0]
            return OuterBlock(weight, view, factor, delta[:, 0], inputs[:, 0])
        products = [torch.bmm(delta.transpose(1, 2), inputs) for inputs, delta in self.calls]
        return RowsBlock(weight, view, factor, _sum(products).flatten(1))


class ConvolutionProbe(LayerProbe):
    """`nn.Conv1d` and `nn.Conv2d` with any stride, padding, dilation and number of groups."""

    _slices3: list[slice] | None = None  # of groups, rows in a group, columns in a group
    _factors: tuple[float, float]

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        layer = self.layer
        if inputs.shape[0] != self.samples or inputs.dim() != layer.weight.dim():
            return None
        outputs, columns, *kernel = layer.weight.shape
        groups: int = layer.groups
        if self._slices3 is None:
            places = self.samples * math.prod(inputs.shape[2:]) / math.prod(layer.stride)
            taps = math.prod(kernel)
            if places * taps > _MOST_WORK:
                return None
            dims = groups, outputs // groups, columns
            elements = min(self.elements, (WORK / places) ** 2)
            self._slices3, _ = self._slices(dims, elements / taps)
            self._narrow_columns(columns, places * taps)
            strides = [part.step for part in self._slices3]
            self._factors = float(math.prod(strides)), float(strides[0] * strides[1])
        group, _, column = self._slices3
        chosen = inputs.unflatten(1, (groups, columns))[:, group, column]
        return _copied(chosen, group.step > 1 or column.step > 1)

    def _narrow_columns(self, columns: int, unfolded: float) -> None:
        """Take fewer input channels where they would be too large when laid out."""
        assert self._slices3 is not None  # noqa: S101 - set by `keep`
        group, row, column = self._slices3
        most = max(int(WORK // unfolded), 1)
        kept = -(-self.layer.groups // group.step) * -(-columns // column.step)
        if kept > most:
            step = min(column.step * -(-kept // most), columns)
            self._slices3 = [group, row, slice(self._rng.randrange(step), None, step)]

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """See the base class."""
        assert self._slices3 is not None  # noqa: S101 - set by `keep`
        layer, (group, row, _) = self.layer, self._slices3
        delta = delta.unflatten(1, (layer.groups, -1))[:, group, row].flatten(3)
        delta = self._unscaled(delta.flatten(0, 1))
        laid_out = self._laid_out(_wide(kept))
        rows = torch.bmm(delta, laid_out.transpose(1, 2)).reshape(self.samples, -1)
        sums = delta.sum(2).reshape(self.samples, -1)
        self.calls.append((rows, sums))

    def _laid_out(self, inputs: Tensor) -> Tensor:
        """Return what each output place sees, [samples x groups, columns x taps, places]."""
        layer = self.layer
        inputs = inputs.flatten(0, 1)
        sides: list[int] = []  # of the last dimension first, as `pad` wants them
        for axis in reversed(range(len(layer.kernel_size))):
            size = layer.padding if isinstance(layer.padding, str) else layer.padding[axis]
            wide = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if size == "same" else 0
            left = wide // 2 if isinstance(size, str) else size
            sides += [left, wide - left if isinstance(size, str) else size]
        if any(sides):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            inputs = functional.pad(inputs, sides, mode=mode)
        # A view of each output place's taps, copied once: several times as fast as `unfold`.
        steps = list(zip(inputs.stride()[2:], layer.dilation, layer.stride, strict=True))
        places = [
            (size - dilation * (taps - 1) - 1) // stride + 1
            for size, dilation, taps, stride in zip(
                inputs.shape[2:], layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        ]
        shape = (*inputs.shape[:2], *layer.kernel_size, *places)
        strides = (
            *inputs.stride()[:2],
            *(step * dilation for step, dilation, _ in steps),
            *(step * stride for step, _, stride in steps),
        )
        taps = inputs.shape[1] * math.prod(layer.kernel_size)
        return inputs.as_strided(shape, strides).reshape(len(inputs), taps, -1)

    def blocks(self) -> list[Block]:
        """See the base class."""
        assert self._slices3 is not None  # noqa: S101 - set by `keep`
        groups, (group, row, column) = self.layer.groups, self._slices3
        rows, sums = (_sum(parts) for parts in zip(*self.calls, strict=True))
        found: list[Block] = []
        weight, bias = self._trained("weight"), self._trained("bias")
        if weight is not None:
            view = lambda tensor: tensor.unflatten(0, (groups, -1))[group, row, column]  # noqa: E731
            found.append(RowsBlock(weight, view, self._factors[0], rows))
        if bias is not None:
            view = lambda tensor: tensor.unflatten(0, (groups, -1))[group, row]  # noqa: E731
            found.append(RowsBlock(bias, view, self._factors[1], sums))
        return found


class NormalisationProbe(LayerProbe):
    """Scale and shift of LayerNorm, RMSNorm, GroupNorm and BatchNorm.

    BatchNorm couples samples: what is measured is the contribution of each sample's outputs.
    """

    _channels: slice | None = None
    _factor = 1.0

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        layer, weight = self.layer, self.layer._parameters.get("weight")
        leading = inputs.shape[:1]
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            leading = inputs.shape[: -len(layer.normalized_shape)]
        if weight is None or not _leads_with(self.samples, leading):
            return None
        if self._channels is None:
            places = inputs.numel() / weight.numel()
            channels = min(self.elements, WORK / places)
            (self._channels,), self._factor = self._slices([weight.numel()], channels)
        return self._laid_out(self._normalised(inputs))

    def _normalised(self, inputs: Tensor) -> Tensor:
        """Return the input normalised, before scale and shift; of BatchNorm the chosen channels."""
        layer, channels, inputs = self.layer, self._channels, _wide(inputs)
        if isinstance(layer, nn.LayerNorm):
            return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        if isinstance(layer, nn.RMSNorm):
            shape = cast("list[int]", layer.normalized_shape)
            return functional.rms_norm(inputs, shape, eps=layer.eps)
        if isinstance(layer, nn.GroupNorm):
            return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        inputs = inputs[:, channels]
        if layer.training or layer.running_mean is None:
            return functional.batch_norm(inputs, None, None, training=True, eps=layer.eps)
        known = layer.running_mean[channels], layer.running_var[channels]
        return functional.batch_norm(inputs, *known, eps=layer.eps)

    def _laid_out(self, values: Tensor) -> Tensor:
        """Return the chosen channels, [samples, channels, places]; of LayerNorm channels last."""
        layer = self.layer
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            flat = values.reshape(self.samples, -1, layer.weight.numel())
            return _copied(flat[:, :, self._channels], self._factor > 1.0)
        if values.shape[1] == layer.weight.numel():
            values = values[:, self._channels]
        return _copied(values.reshape(self.samples, values.shape[1], -1), self._factor > 1.0)

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """See the base class."""
        delta = self._unscaled(self._laid_out(delta))
        places = 1 if isinstance(self.layer, (nn.LayerNorm, nn.RMSNorm)) else 2
        self.calls.append(((delta * kept).sum(places), delta.sum(places)))

    def blocks(self) -> list[Block]:
        """See the base class."""
        channels, factor = self._channels, self._factor
        found: list[Block] = []
        for name, rows in zip(("weight", "bias"), zip(*self.calls, strict=True), strict=True):
            parameter = self._trained(name)
            if parameter is not None:
                view: View = lambda tensor: tensor.reshape(-1)[channels]  # noqa: E731
                found.append(RowsBlock(parameter, view, factor, _sum(rows)))
        return found


class EmbeddingProbe(LayerProbe):
    """`nn.Embedding` with dense gradients."""

    _columns: slice | None = None
    _factor = 1.0

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        layer = self.layer
        plain = not (layer.sparse or layer.scale_grad_by_freq or layer.max_norm is not None)
        if not plain or not _leads_with(self.samples, inputs.shape):
            return None
        if self._columns is None:
            places = max(layer.num_embeddings, inputs.numel())
            columns = max(WORK // places, 1)
            (self._columns,), self._factor = self._slices([layer.embedding_dim], columns)
        return inputs.reshape(self.samples, -1)

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """See the base class."""
        delta = delta.reshape(self.samples, -1, delta.shape[-1])[:, :, self._columns]
        if self.layer.padding_idx is not None:
            delta = delta.masked_fill((kept == self.layer.padding_idx)[:, :, None], 0.0)
        self.calls.append((kept.long(), self._unscaled(delta)))

    def blocks(self) -> list[Block]:
        """See the base class."""
        weight, columns = self._trained("weight"), self._columns
        if weight is None:
            return []
        tokens, deltas = (torch.cat(parts, 1) for parts in zip(*self.calls, strict=True))
        view: View = lambda tensor: tensor[:, columns]  # noqa: E731
        return [TokensBlock(weight, view, self._factor, tokens, deltas)]


PROBES: dict[type[nn.Module], type[LayerProbe]] = {
    nn.Linear: LinearProbe,
    nn.Conv1d: ConvolutionProbe,
    nn.Conv2d: ConvolutionProbe,
    nn.LayerNorm: NormalisationProbe,
    nn.RMSNorm: NormalisationProbe,
    nn.GroupNorm: NormalisationProbe,
    nn.BatchNorm1d: NormalisationProbe,
    nn.BatchNorm2d: NormalisationProbe,
    nn.BatchNorm3d: NormalisationProbe,
    nn.Embedding: EmbeddingProbe,
}
"""How each kind of layer is watched."""


def probe_of(layer: nn.Module) -> type[LayerProbe] | None:
    """Return how a layer is watched; None where it is of no such kind."""
    return next((probe for kind, probe in PROBES.items() if isinstance(layer, kind)), None)


def _leads_with(samples: int, leading: Sequence[int]) -> bool:
    """Return whether an input's leading dimensions say that the first one counts the samples.

    Two that are equal do not say which: a sequence as long as the batch may come first.
    """
    return bool(leading) and leading[0] == samples and samples not in leading[1:2]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _copied(tensor: Tensor, is_part: bool) -> Tensor:
    """Return a part in memory of its own, so that the whole need not be kept for it."""
    return tensor.clone() if is_part else tensor


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
