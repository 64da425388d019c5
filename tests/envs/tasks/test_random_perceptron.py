"""Random tasks: what their numbers determine, and that they can be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlbatch.envs.perceptron import is_perceptron_task
from rlbatch.envs.random_fit import fit, fitted_table
from rlbatch.envs.task import resolve_task
from rlbatch.envs.tasks.random_perceptron import RandomPerceptron, parse, planned_steps, with_fit
from rlbatch.errors import ConfigurationError

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


def test_numbers_give_different_tasks() -> None:
    tasks = [resolve_task(f"random:{number}") for number in NUMBERS]
    shapes = {tuple(tuple(p.shape) for p in task.model().parameters()) for task in tasks}
    assert len(shapes) == len(tasks)
    optimizers = {type(task.optimizer(task.model().parameters())).__name__ for task in tasks}
    assert optimizers == {"AdamW", "SGD"}
    assert {task.scheduler is None for task in tasks} == {True, False}
    assert {task.loss.__name__ for task in tasks} == {"classification_loss", "regression_loss"}
    assert len({planned_steps(number) for number in NUMBERS}) > 15


def test_names_are_read_back() -> None:
    job = with_fit(7, 0.012345678, 1.23456)
    assert parse(job.name) == job == RandomPerceptron(7, 0.01235, 1.235)
    for wrong in ("random:", "random:x", "random:1:2", "random:1:a:b", "digits:1"):
        with pytest.raises(ConfigurationError, match="random:NUMBER"):
            parse(wrong)


@pytest.mark.slow
def test_a_fitted_task_reaches_its_target_at_its_own_size() -> None:
    table = fitted_table(12)
    assert table is not None
    job = parse(table.task)
    assert job == fit(12)
    assert job.target is not None
    row = table.row(0, 0)
    assert row is not None
    steps = table.steps_to(row, job.target)
    assert steps <= 3 * planned_steps(12)
    assert np.isfinite(table.val_loss[row, 0, 0])
    assert table.rates() == [0]
