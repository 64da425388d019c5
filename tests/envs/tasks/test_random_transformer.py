"""Random transformers: what their numbers determine, and what there is to learn in their data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlbatch.envs.curves import COUPLINGS, CurveTable
from rlbatch.envs.random_fit import fitted_table
from rlbatch.envs.task import resolve_task
from rlbatch.envs.tasks import random_transformer
from rlbatch.envs.tasks.random_job import RandomJob
from rlbatch.envs.tasks.transformer import CausalTransformer, next_token_loss

NUMBERS = range(16)


def test_a_number_determines_its_task() -> None:
    for number in NUMBERS:
        first = resolve_task(f"random-transformer:{number}")
        second = resolve_task(f"random-transformer:{number}:0.01:0.5")
        assert torch.equal(first.train_set.columns[0], second.train_set.columns[0])  # type: ignore[attr-defined]
        assert first.batch_size == second.batch_size
        assert second.target == 0.5
        assert second.optimizer(second.model().parameters()).param_groups[0]["lr"] == 0.01
        assert second.batch_size <= (second.max_batch_size or 0) <= len(second.train_set)  # type: ignore[arg-type]


def test_numbers_give_different_tasks() -> None:
    tasks = [resolve_task(f"random-transformer:{number}") for number in NUMBERS]
    shapes = {tuple(tuple(p.shape) for p in task.model().parameters()) for task in tasks}
    assert len(shapes) == len(tasks)
    optimizers = {type(task.optimizer(task.model().parameters())).__name__ for task in tasks}
    assert optimizers == {"AdamW", "SGD"}
    assert {task.scheduler is None for task in tasks} == {True, False}


@pytest.mark.parametrize("number", NUMBERS)
def test_halves_of_a_batch_average_to_the_whole(number: int) -> None:
    task = resolve_task(f"random-transformer:{number}")
    model = task.model()
    rows = [task.train_set.__getitems__(list(part)) for part in (range(8), range(4), range(4, 8))]  # type: ignore[attr-defined]
    whole, left, right = (task.loss(model, row) for row in rows)
    torch.testing.assert_close(whole, (left + right) / 2)


def test_only_what_can_be_foretold_counts() -> None:
    model = CausalTransformer(5, 6, 8, 2, blocks=2)
    windows = torch.randint(5, (3, 7))
    each = torch.log_softmax(model(windows[:, :-1]), dim=-1)
    expected = -each.gather(2, windows[:, 1:, None])[:, 3:].mean()  # tokens 4, 5 and 6
    torch.testing.assert_close(next_token_loss(model, (windows,), first=4), expected)


def test_every_kind_of_data_is_as_it_says() -> None:
    rng = np.random.default_rng(0)
    text, first = random_transformer._text(rng, 300)
    assert first == 1
    assert len(np.unique(text)) > 20

    # The rewriting is a function of the source but for the slips: a table of symbols finds it.
    windows, first = random_transformer._rewriting(np.random.default_rng(3), 400)
    symbols, length = int(windows.max()), first - 1
    assert (windows[:, length] == symbols).all()
    source, target = windows[:, :length], windows[:, first:]
    hits = max(
        np.mean([_most_common_share(order, target, s) for s in range(symbols)])
        for order in (source, source[:, ::-1], np.sort(source, axis=1))
    )
    assert hits > 0.75

    # In a chain the last step and an older one tell more than nothing about the next.
    walks, first = random_transformer._chain(np.random.default_rng(0), 4000)
    assert first == 1
    pairs = np.stack([walks[:, -2], walks[:, -1]])
    symbols = int(walks.max()) + 1
    joint = np.histogram2d(*pairs, bins=symbols, range=[[0, symbols]] * 2)[0] / walks.shape[0]
    margins = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    assert (joint[seen] * np.log(joint[seen] / margins[seen])).sum() > 0.2


def _most_common_share(source: np.ndarray, target: np.ndarray, symbol: int) -> float:
    written = target[source == symbol]
    return np.bincount(written).max() / len(written) if len(written) else 1.0


# Short ones, with a constant rate and with a schedule.
@pytest.fixture(scope="module", params=[111, 47])
def fitted(request: pytest.FixtureRequest) -> tuple[RandomJob, CurveTable]:
    job = RandomJob("random-transformer", request.param)
    table = fitted_table(job)
    assert table is not None
    return job, table


@pytest.mark.slow
def test_curves_serve_one_coupling(fitted: tuple[RandomJob, CurveTable]) -> None:
    job, table = fitted
    assert table.couplings(0) == [COUPLINGS[job.number % 3]]
    sizes = {size for size, _ in table.points.tolist()}
    assert len(table.points) == len(sizes) > 5


@pytest.mark.slow
def test_a_fitted_task_learns_and_reaches_its_target(
    fitted: tuple[RandomJob, CurveTable],
) -> None:
    job, table = fitted
    row = table.row(0, 0)
    assert row is not None
    task = resolve_task(table.task)
    assert table.steps_to(row, task.target) <= 3 * job.planned_steps()
    vocabulary = task.model().output.out_features  # type: ignore[union-attr]
    assert task.target < 0.9 * math.log(float(vocabulary))  # type: ignore[arg-type]
