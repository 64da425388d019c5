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

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlbatch.signals.sample_blocks import Block, OuterBlock, RowsBlock, TokensBlock, View
from rlbatch.signals.sample_convolution import ConvolutionProbe
from rlbatch.signals.sample_probe import WORK, LayerProbe, copied, leads_with, total_of, wide


class LinearProbe(LayerProbe):
    """`nn.Linear`, also on sequences: [samples, ..., features]."""

    _rows: slice | None = None
    _columns: slice
    _factors: tuple[float, float]

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        if not leads_with(self.samples, inputs.shape[:-1]):
            return None
        inputs = inputs.reshape(self.samples, -1, inputs.shape[-1])
        if self._rows is None:
            # The products of a single call without a sequence need not be multiplied out.
            places = inputs.shape[1]
            wide = (WORK / (self.samples * places)) ** 2
            elements = self.elements * 8 if places == 1 else min(self.elements, wide)
            # Not by the weight itself, which may be computed whenever it is asked for: each look at
            # one under spectral normalisation changes the run.
            shape = self.layer.out_features, self.layer.in_features
            (self._rows, self._columns), both = self._slices(shape, elements)
            self._factors = both, float(self._rows.step)
        return copied(inputs[:, :, self._columns], self._columns.step > 1)

    def add(self, kept: Tensor, delta: Tensor) -> None:
        """See the base class."""
        assert self._rows is not None  # noqa: S101 - set by `keep`
        delta = delta.reshape(self.samples, -1, delta.shape[-1])[:, :, self._rows]
        self.calls.append((wide(kept), self._unscaled(delta)))

    def blocks(self) -> list[Block]:
        """See the base class."""
        rows, columns = self._rows, self._columns
        found: list[Block] = []
        weight, bias = self._trained("weight"), self._trained("bias")
        if weight is not None:
            found.append(self._weight_block(weight, lambda tensor: tensor[rows, columns]))
        if bias is not None:
            sums = total_of([delta.sum(1) for _, delta in self.calls])
            found.append(RowsBlock(bias, lambda tensor: tensor[rows], self._factors[1], sums))
        return found

    def _weight_block(self, weight: nn.Parameter, view: View) -> Block:
        factor = self._factors[0]
        if len(self.calls) == 1 and self.calls[0][0].shape[1] == 1:
            inputs, delta = self.calls[0]
            return OuterBlock(weight, view, factor, delta[:, 0], inputs[:, 0])
        products = [torch.bmm(delta.transpose(1, 2), inputs) for inputs, delta in self.calls]
        return RowsBlock(weight, view, factor, total_of(products).flatten(1))


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
        if weight is None or not leads_with(self.samples, leading):
            return None
        if self._channels is None:
            places = inputs.numel() / weight.numel()
            channels = min(self.elements, WORK / places)
            (self._channels,), self._factor = self._slices([weight.numel()], channels)
        return self._laid_out(self._normalised(inputs))

    def _normalised(self, inputs: Tensor) -> Tensor:
        """Return the input normalised, before scale and shift; of BatchNorm the chosen channels."""
        layer, channels, inputs = self.layer, self._channels, wide(inputs)
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
            return copied(flat[:, :, self._channels], self._factor > 1.0)
        if values.shape[1] == layer.weight.numel():
            values = values[:, self._channels]
        return copied(values.reshape(self.samples, values.shape[1], -1), self._factor > 1.0)

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
                found.append(RowsBlock(parameter, view, factor, total_of(rows)))
        return found


class EmbeddingProbe(LayerProbe):
    """`nn.Embedding` with dense gradients."""

    _columns: slice | None = None
    _factor = 1.0

    def keep(self, inputs: Tensor) -> Tensor | None:
        """See the base class."""
        layer = self.layer
        plain = not (layer.sparse or layer.scale_grad_by_freq or layer.max_norm is not None)
        if not plain or not leads_with(self.samples, inputs.shape):
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
