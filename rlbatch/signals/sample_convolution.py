"""The samples' gradients of convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from rlbatch.signals.sample_blocks import Block, RowsBlock, View
from rlbatch.signals.sample_probe import MOST_WORK, WORK, LayerProbe, copied, total_of, wide


class ConvolutionProbe(LayerProbe):
    """`nn.Conv1d` and `nn.Conv2d` with any stride, padding, dilation and number of groups."""

    _slices3: list[slice] | None = None  # of groups, rows in a group, columns in a group
    _factors: tuple[float, float]

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        layer = self.layer
        # Nothing asks for the weight, which may be computed at each look (`LinearProbe.keep`).
        groups, kernel = layer.groups, layer.kernel_size
        if inputs.shape[0] != self.samples or inputs.dim() != 2 + len(kernel):
            return None
        outputs, columns = layer.out_channels, layer.in_channels // groups
        if self._slices3 is None:
            places = self.samples * math.prod(inputs.shape[2:]) / math.prod(layer.stride)
            taps = math.prod(kernel)
            if places * taps > MOST_WORK:
                return None
            dims = groups, outputs // groups, columns
            elements = min(self.elements, (WORK / places) ** 2)
            self._slices3, _ = self._slices(dims, elements / taps)
            self._narrow_columns(columns, places * taps)
            strides = [part.step for part in self._slices3]
            self._factors = float(math.prod(strides)), float(strides[0] * strides[1])
        group, _, column = self._slices3
        chosen = _unflattened(inputs, 1, groups)[:, group, column]
        return copied(chosen, group.step > 1 or column.step > 1)

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
        delta = _unflattened(delta, 1, layer.groups)[:, group, row].flatten(3)
        delta = self._unscaled(delta.flatten(0, 1))
        laid_out = self._laid_out(wide(kept))
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
        groups = self.layer.groups
        rows, sums = (total_of(parts) for parts in zip(*self.calls, strict=True))
        found: list[Block] = []
        weight, bias = self._trained("weight"), self._trained("bias")
        if weight is not None:
            view = _grouped(groups, self._slices3)
            found.append(RowsBlock(weight, view, self._factors[0], rows))
        if bias is not None:
            view = _grouped(groups, self._slices3[:2])
            found.append(RowsBlock(bias, view, self._factors[1], sums))
        return found


def _unflattened(tensor: Tensor, dim: int, groups: int) -> Tensor:
    """Return a view in which a dimension of channels is one of groups and one of their channels."""
    return cast("Any", tensor).unflatten(dim, (groups, -1))


def _grouped(groups: int, slices: Sequence[slice]) -> View:
    """Return the view of a parameter's chosen groups, rows and, of a weight, columns."""
    return lambda tensor: _unflattened(tensor, 0, groups)[tuple(slices)]
