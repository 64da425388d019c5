"""Trials on a copy of a live run: what they show, what they cost, and that they leave no trace."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.clock import make_clock
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.perceptron import PerceptronBackend
from rlbatch.envs.profiles import CostWeights, DeviceProfile
from rlbatch.envs.sample_order import SampleOrder
from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import (
    TensorTable,
    collate_table,
    multilayer_perceptron,
    regression_loss,
)
from rlbatch.signals.record import Coupling

PROFILE = DeviceProfile("test", launch_seconds=1e-3, sample_seconds=1e-5, update_seconds=1e-4)


def noisy_network() -> nn.Module:
    """What a trial could leave a trace in: statistics of batches, random numbers."""
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1)
    )


def squared(model: nn.Module, batch: Any) -> Tensor:
    return 0.5 * (model(batch[0]).squeeze(1) - batch[1]).square().mean()


def task_of(model: Any, *, plain: bool, rows: int = 100) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 6, generator=generator)
    table = TensorTable(x, x.sum(1).sin())
    return Task(
        name="test",
        model=model,
        train_set=table,
        val_set=table,
        loss=regression_loss if plain else squared,
        optimizer=partial(AdamW, lr=3e-3),
        batch_size=16,
        target=0.05,
        scheduler=CosineAnnealingLR,
        collate=collate_table,
    )


def run_of(task: Task, backend: BackendMaker = TorchBackend, **changes: Any) -> LiveRun:
    options: dict[str, Any] = {
        "seed": 3,
        "coupling": Coupling.SQRT,
        "profile": PROFILE,
        "objective": Objective(budget=1e9),
        "cadence": Cadence(first=4),
        "planned_steps": 100,
        "noise_rate": 0.0,
    }
    return LiveRun(task, backend=backend, **{**options, **changes})


@pytest.mark.parametrize(
    ("model", "backend"),
    [(noisy_network, TorchBackend), (partial(multilayer_perceptron, 6, 8, 1), PerceptronBackend)],
)
def test_a_run_goes_on_after_trials_as_if_there_had_been_none(
    model: Any, backend: BackendMaker
) -> None:
    task = task_of(model, plain=backend is PerceptronBackend)
    alone, tried = run_of(task, backend), run_of(task, backend)
    spent = 0.0
    for size in (16, 16, 32, 16, 16, 16):
        alone.advance(size)
        tried.advance(size)
        before = tried.cost
        losses = [tried.trial(other, 128) for other in (16, 64, 16)]
        spent += tried.cost - before
        assert losses[0] == losses[2] != losses[1]
    assert alone.validate() == tried.validate()
    assert (alone.steps, alone.samples_seen) == (tried.steps, tried.samples_seen)
    assert spent > 0.0
    assert tried.cost == pytest.approx(alone.cost + spent, rel=1e-12)


def test_a_trial_costs_its_steps_and_an_epoch_s_rest_is_a_step() -> None:
    run = run_of(task_of(noisy_network, plain=False))
    run.advance(16)
    assert run.samples_seen == 64  # of 100
    before = run.cost
    run.trial(16, 128)
    # the first half is 16 16 4 of this epoch and 16 16 of the next, the second half four of 16
    seconds = {n: float(PROFILE.step_seconds(n)) for n in (16, 4)}
    assert run.cost - before == pytest.approx(8 * seconds[16] + seconds[4], rel=1e-12)
    assert (run.tried_steps, run.tried_samples) == (9, 132)
    assert (run.steps, run.samples_seen) == (4, 64)


class Point(nn.Module):
    """One parameter."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([5.0], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.at - x


def quadratic(spread: float, rate: float = 0.02, dtype: torch.dtype = torch.float64) -> Task:
    """Samples around 0 and the loss (theta - x)^2 / 2: tr(Sigma) / |G|^2 = spread^2 / theta^2."""
    x = spread * np.random.default_rng(0).standard_normal(4096)
    data = TensorDataset(torch.from_numpy(x - x.mean()).to(dtype))
    return Task(
        name="quadratic",
        model=partial(Point, dtype),
        train_set=data,
        val_set=data,
        loss=lambda model, batch: 0.5 * model(batch[0]).square().mean(),
        optimizer=partial(SGD, lr=rate),
        batch_size=8,
        target=1e-9,
    )


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("coupling", [Coupling.NONE, Coupling.SQRT, Coupling.LINEAR])
def test_the_loss_of_a_trial_is_that_of_a_loop_by_hand(size: int, coupling: Coupling) -> None:
    task = quadratic(1.0)
    run = run_of(task, coupling=coupling, planned_steps=None)
    run.advance(8)
    shown = run.trial(size, 256)
    x = task.train_set.tensors[0].numpy()  # pyright: ignore[reportAttributeAccessIssue]
    order = SampleOrder(4096, 3)
    theta, losses = 5.0, []
    exponent = {Coupling.NONE: 0.0, Coupling.SQRT: 0.5, Coupling.LINEAR: 1.0}[coupling]
    for step in range(4 + 256 // size):
        now = 8 if step < 4 else size
        batch = x[order.take(now)]
        losses.append(0.5 * np.mean((theta - batch) ** 2))
        theta -= 0.02 * (now / 8) ** exponent * np.mean(theta - batch)
    assert shown == pytest.approx(np.mean(losses[4:][128 // size :]), rel=1e-9)


def test_a_lost_trial_is_infinite_and_the_run_is_not_lost() -> None:
    task = quadratic(1.0, rate=1.5, dtype=torch.float32)
    run = run_of(task, coupling=Coupling.LINEAR, planned_steps=None)
    run.advance(8)
    assert run.trial(1024, 65536) == math.inf
    run.advance(8)
    assert not run.diverged
    assert math.isfinite(run.validate())


def test_a_trial_that_spends_the_budget_ends_the_run() -> None:
    clock = make_clock(PROFILE, CostWeights(), 8)
    enough = 10.5 * clock.lap(8, False)
    run = run_of(quadratic(1.0), objective=Objective(budget=enough), planned_steps=None)
    run.advance(8)
    assert not run.finished
    run.trial(8, 64)
    assert run.finished
    assert run.exhausted
    assert len(run.validations) > 0


def test_a_copied_order_goes_on_alike_and_alone() -> None:
    order = SampleOrder(10, 1)
    order.take(7)
    twin = order.copy()
    ahead = [twin.take(4) for _ in range(8)]
    assert ahead == [order.take(4) for _ in range(8)]
