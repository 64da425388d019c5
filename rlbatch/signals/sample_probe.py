"""What the layers have in common whose samples' gradients can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from rlbatch.signals.sample_blocks import Block

WORK = 1 << 18
"""About how many numbers of a layer's inputs, and as many of its outputs' gradients, are touched.

One channel at each place of each sample is the least, and a layer is left out where that is more
than `MOST_WORK`.
"""

MOST_WORK = 1 << 24


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
        delta = wide(delta)
        if self.unscaling is None:
            return delta
        return delta * self.unscaling.to(delta.device, non_blocking=True)

    def _trained(self, name: str) -> nn.Parameter | None:
        parameter = self.layer._parameters.get(name)
        return parameter if parameter is not None and parameter.requires_grad else None


def leads_with(samples: int, leading: Sequence[int]) -> bool:
    """Return whether an input's leading dimensions say that the first one counts the samples.

    Two that are equal do not say which: a sequence as long as the batch may come first.
    """
    return bool(leading) and leading[0] == samples and samples not in leading[1:2]


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def copied(tensor: Tensor, is_part: bool) -> Tensor:
    """Return a part in memory of its own, so that the whole need not be kept for it."""
    return tensor.clone() if is_part else tensor


def total_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
