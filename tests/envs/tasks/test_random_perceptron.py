"""Random tasks: what their numbers determine, and that they can be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlbatch.envs.perceptron_tasks import is_perceptron_task
from rlbatch.envs.random_fit import fit, fitted_table
from rlbatch.envs.task import resolve_task
from rlbatch.envs.tasks.random_job import RandomJob, parse
from rlbatch.envs.tasks.random_perceptron import kind_of_data

NUMBERS = range(24)


def test_a_number_determines_its_task() -> None:
    for number in NUMBERS:
        first = resolve_task(f"random:{number}")
        second = resolve_task(f"random:{number}:0.01:0.5")
        for left, right in zip(first.train_set.columns, second.train_set.columns, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(left, right)
        assert first.batch_size == second.batch_size
        assert second.target == 0.5
        optimizer = second.optimizer(second.model().parameters())
        assert optimizer.param_groups[0]["lr"] == 0.01
        assert is_perceptron_task(second)
        assert second.batch_size <= (second.max_batch_size or 0) <= len(second.train_set)  # type: ignore[arg-type]


def test_the_kind_of_data_shows_in_the_data() -> None:
    kinds = {number: kind_of_data(number) for number in range(60)}
    assert set(kinds.values()) == {
        *("regression", "surface", "taught_classes", "clusters", "documents", "text", "images"),
    }
    for number in NUMBERS:
        task, kind = resolve_task(f"random:{number}"), kinds[number]
        inputs = task.train_set.columns[0]  # type: ignore[attr-defined]
        values = len(torch.unique(inputs, dim=0))
        assert (task.loss.__name__ == "regression_loss") == (kind in {"regression", "surface"})
        if kind == "images":
            assert inputs.shape[1] == 64
        if kind == "text":
            assert inputs.shape[1] in {64, 96}
            assert len(torch.unique(inputs)) <= 2 * inputs.shape[1]
        assert values > 1


def test_numbers_give_different_tasks() -> None:
    tasks = [resolve_task(f"random:{number}") for number in NUMBERS]
    shapes = {tuple(tuple(p.shape) for p in task.model().parameters()) for task in tasks}
    assert len(shapes) == len(tasks)
    optimizers = {type(task.optimizer(task.model().parameters())).__name__ for task in tasks}
    assert optimizers == {"AdamW", "SGD"}
    assert {task.scheduler is None for task in tasks} == {True, False}
    assert {task.loss.__name__ for task in tasks} == {"classification_loss", "regression_loss"}


@pytest.mark.slow
def test_a_fitted_task_reaches_its_target_at_its_own_size() -> None:
    table = fitted_table(RandomJob("random", 12))
    assert table is not None
    job = parse(table.task)
    assert job == fit(RandomJob("random", 12))
    assert job.target is not None
    row = table.row(0, 0)
    assert row is not None
    steps = table.steps_to(row, job.target)
    assert steps <= 3 * job.planned_steps()
    assert np.isfinite(table.val_loss[row, 0, 0])
    assert table.rates() == [0]
