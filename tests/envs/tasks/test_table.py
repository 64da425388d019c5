from __future__ import annotations

import pytest
import torch
from torch import nn

from rlbatch.envs.tasks.table import (
    TensorTable,
    collate_table,
    largest_batch_size,
    multilayer_perceptron,
    regression_loss,
    shuffled_split,
)
from rlbatch.errors import ConfigurationError


def test_table_returns_rows_and_batches_in_the_order_asked_for() -> None:
    table = TensorTable(torch.arange(10).view(5, 2), torch.arange(5.0))
    assert len(table) == 5
    row, value = table[3]
    assert (row.tolist(), value.item()) == ([6, 7], 3.0)
    rows, values = table.__getitems__([4, 0, 4])
    assert (rows.tolist(), values.tolist()) == ([[8, 9], [0, 1], [8, 9]], [4.0, 0.0, 4.0])


@pytest.mark.parametrize("columns", [(), (torch.zeros(3), torch.zeros(2))])
def test_table_refuses_columns_of_different_lengths(columns: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ConfigurationError, match="common number of rows"):
        TensorTable(*columns)


def test_collation_of_rows_equals_the_batch() -> None:
    table = TensorTable(torch.randn(6, 3), torch.arange(6))
    batch = table.__getitems__([5, 2])
    assert collate_table(batch) is batch
    torch.testing.assert_close(collate_table([table[5], table[2]]), batch)


@pytest.mark.parametrize(
    ("train_size", "expected"),
    [(1, 1), (2, 2), (3, 2), (1400, 1024), (4095, 2048), (4096, 4096), (9000, 4096)],
)
def test_largest_batch_size(train_size: int, expected: int) -> None:
    assert largest_batch_size(train_size) == expected


def test_split_holds_out_each_row_once_and_keeps_rows_together() -> None:
    ids = torch.arange(20)
    train, val = shuffled_split((ids, 10 * ids), val_rows=6)
    assert (len(train), len(val)) == (14, 6)
    assert sorted(torch.cat([train.columns[0], val.columns[0]]).tolist()) == ids.tolist()
    assert torch.equal(train.columns[1], 10 * train.columns[0])
    torch.manual_seed(99)  # the global seed does not matter
    assert torch.equal(shuffled_split((ids,), val_rows=6)[1].columns[0], val.columns[0])


def test_regression_loss_does_not_broadcast() -> None:
    inputs, values = torch.randn(4, 1), torch.randn(4)
    expected = (inputs[:, 0] - values).square().mean()
    torch.testing.assert_close(regression_loss(nn.Identity(), (inputs, values)), expected)


def test_perceptron_has_no_activation_at_its_end() -> None:
    layers = [type(layer) for layer in multilayer_perceptron(4, 3, 2)]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear]
