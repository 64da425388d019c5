"""Elements of a parameter whose gradient is known for every sample of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

View = Callable[[Tensor], Tensor]


class Block:
    """Elements of a parameter, and their gradient for every sample.

    Attributes:
        parameter: Whose elements.
        view: Takes them out of a tensor that is shaped as the parameter; any shape.
        factor: Elements of the parameter for each of the block, on average over offsets.
    """

    def __init__(self, parameter: nn.Parameter, view: View, factor: float) -> None:
        """See the attributes."""
        self.parameter, self.view, self.factor = parameter, view, factor

    def total(self) -> Tensor:
        """Return the sum over samples, shaped as the view."""
        raise NotImplementedError

    def squares(self, weight: Tensor | None) -> Tensor:
        """Return each sample's squared norm, shape (samples,).

        Args:
            weight: Of each element, shaped as the view; None for ones.
        """
        raise NotImplementedError


class RowsBlock(Block):
    """The samples' gradients themselves, shape (samples, elements)."""

    def __init__(self, parameter: nn.Parameter, view: View, factor: float, rows: Tensor) -> None:
        super().__init__(parameter, lambda tensor: view(tensor).reshape(-1), factor)
        self._rows = rows

    def total(self) -> Tensor:
        """See the base class."""
        return self._rows.sum(0)

    def squares(self, weight: Tensor | None) -> Tensor:
        """See the base class."""
        squared = self._rows.square()
        return squared.sum(1) if weight is None else squared @ weight


class OuterBlock(Block):
    """One product a sample, (samples, rows) with (samples, columns): never multiplied out."""

    def __init__(
        self, parameter: nn.Parameter, view: View, factor: float, left: Tensor, right: Tensor
    ) -> None:
        super().__init__(parameter, view, factor)
        self._left, self._right = left, right

    def total(self) -> Tensor:
        """See the base class."""
        return self._left.T @ self._right

    def squares(self, weight: Tensor | None) -> Tensor:
        """See the base class."""
        left, right = self._left.square(), self._right.square()
        if weight is None:
            return left.sum(1) * right.sum(1)
        return ((left @ weight) * right).sum(1)


class TokensBlock(Block):
    """Rows of a table: a sample's gradient of a row is a sum over the places that look it up."""

    def __init__(
        self, parameter: nn.Parameter, view: View, factor: float, tokens: Tensor, deltas: Tensor
    ) -> None:
        super().__init__(parameter, view, factor)
        self._tokens, self._deltas = tokens, deltas  # [samples, places] and [.., .., columns]

    def total(self) -> Tensor:
        """See the base class."""
        deltas = self._deltas.flatten(0, 1)
        total = deltas.new_zeros(self.parameter.shape[0], deltas.shape[1])
        return total.index_add_(0, self._tokens.reshape(-1), deltas)

    def squares(self, weight: Tensor | None) -> Tensor:
        """See the base class."""
        samples = self._tokens.shape[0]
        owners = torch.arange(samples, device=self._tokens.device)
        keys = (self._tokens + self.parameter.shape[0] * owners[:, None]).reshape(-1)
        keys, order = keys.sort()
        # Places of one sample with one token share a slot: sums without a size that is only known
        # on the device.
        slots = torch.zeros_like(keys)
        slots[1:] = (keys[1:] != keys[:-1]).cumsum(0)
        deltas = self._deltas.flatten(0, 1)
        sums = torch.zeros_like(deltas).index_add_(0, slots, deltas[order])
        slot_keys = torch.zeros_like(keys).scatter_(0, slots, keys)  # equal keys: any may win
        squared = sums.square()
        if weight is not None:
            squared *= weight[slot_keys % self.parameter.shape[0]]
        owner = slot_keys // self.parameter.shape[0]
        return squared.new_zeros(samples).index_add_(0, owner, squared.sum(1))
