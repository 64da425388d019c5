"""The order in which a live run visits its samples: a function of the seed alone."""

from __future__ import annotations

import torch


class SampleOrder:
    """Endless epochs, each a new permutation, handed out in batches of any size.

    The sequence of samples does not depend on how it is divided, so two runs of one seed see the
    same data whatever their batch sizes. A batch ends with its epoch, as in a DataLoader that keeps
    the last batch: each epoch visits each sample once. A single sample that would be left joins the
    batch before it, since batch normalisation refuses one.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Prepare the first epoch.

        Args:
            size: Samples in an epoch.
            seed: Of the permutations.
        """
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self._position = 0

    def take(self, batch_size: int) -> list[int]:
        """Return the next samples' indices: `batch_size`, or what is left of the epoch."""
        if self._position >= len(self._order):
            self._order = torch.randperm(self._size, generator=self._generator).tolist()
            self._position = 0
        start = self._position
        self._position = min(start + batch_size, self._size)
        if batch_size > 1 and self._size - self._position == 1:
            self._position = self._size
        return self._order[start : self._position]

    def copy(self) -> SampleOrder:
        """Return an order that hands out what comes next here, and leaves this one where it is."""
        twin = SampleOrder(self._size, 0)
        twin._generator = self._generator.clone_state()
        twin._order, twin._position = self._order, self._position
        return twin
