"""What the built-in tasks share: a dataset of tensors, its collation, losses and the MLP."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset, default_collate

from rlbatch.errors import ConfigurationError

BATCH_SIZE_CAP = 4096  # samples; none of these tasks gains beyond


class TensorTable(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors in memory; a batch is one index operation, whatever its size.

    `__getitems__` returns the batch, a tuple of tensors, not a list of rows: use `collate_table`.
    """

    def __init__(self, *columns: Tensor) -> None:
        """Keep the columns: tensors of equal first dimension (rows).

        Raises:
            ConfigurationError: There is no column, or their numbers of rows differ.
        """
        sizes = [len(column) for column in columns]
        if not sizes or len(set(sizes)) != 1:
            raise ConfigurationError(
                f"A TensorTable needs columns with one common number of rows, got {sizes}. "
                "Pass at least one tensor and cut all to the same length."
            )
        self.columns = columns

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return one row."""
        return tuple(column[index] for column in self.columns)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Return the batch of the rows at `indices`, each tensor with a leading batch dimension."""
        return tuple(column[indices] for column in self.columns)


def collate_table(samples: tuple[Tensor, ...] | Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the batch: as it is when the table made it, collated when given a list of rows.

    Rows come one by one when someone wraps the table in a dataset without `__getitems__`.
    """
    if isinstance(samples, tuple):
        return cast("tuple[Tensor, ...]", samples)
    return tuple(default_collate(cast("list[Any]", samples)))


def shuffled_split(
    columns: Sequence[Tensor], val_rows: int, seed: int = 0
) -> tuple[TensorTable, TensorTable]:
    """Return training and validation tables; the held out rows depend on nothing but `seed`."""
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(seed))
    val, train = order[:val_rows], order[val_rows:]
    return (
        TensorTable(*(column[train] for column in columns)),
        TensorTable(*(column[val] for column in columns)),
    )


def largest_batch_size(train_size: int) -> int:
    """Return the largest power of two that is at most `train_size` and `BATCH_SIZE_CAP`."""
    return min(1 << (train_size.bit_length() - 1), BATCH_SIZE_CAP)


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy in nats of (inputs, class indices [B])."""
    inputs, labels = batch
    return cross_entropy(model(inputs), labels)


def regression_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error of (inputs, values [B]); the model returns [B, 1]."""
    inputs, values = batch
    return mse_loss(model(inputs).squeeze(-1), values)


def multilayer_perceptron(*widths: int) -> nn.Sequential:
    """Return linear layers of the given widths, input to output, with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
