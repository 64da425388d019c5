"""The length of a schedule, against where its learning rate stops moving."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.control.schedule_length import length_of, scheduled_steps


def _optimizer() -> Optimizer:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def _cosine_after_warm_up(optimizer: Optimizer) -> schedulers.LRScheduler:
    warm_up = schedulers.LinearLR(optimizer, 0.1, total_iters=20)
    cosine = schedulers.CosineAnnealingLR(optimizer, T_max=80)
    return schedulers.SequentialLR(optimizer, [warm_up, cosine], milestones=[20])


def _fraction(step: int, *, num_training_steps: int) -> float:
    return max(0.0, 1.0 - step / num_training_steps)


def _as_transformers(optimizer: Optimizer) -> schedulers.LRScheduler:
    return schedulers.LambdaLR(optimizer, partial(_fraction, num_training_steps=100))


ENDING: dict[str, Callable[[Optimizer], schedulers.LRScheduler]] = {
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T_max=100),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=100),
    "polynomial": lambda o: schedulers.PolynomialLR(o, total_iters=100, power=2.0),
    "linear": lambda o: schedulers.LinearLR(o, 1.0, 0.01, total_iters=100),
    "warm-up, cosine": _cosine_after_warm_up,
    "transformers": _as_transformers,
}

ENDLESS: dict[str, Callable[[Optimizer], schedulers.LRScheduler]] = {
    "steps": lambda o: schedulers.StepLR(o, step_size=30),
    "milestones": lambda o: schedulers.MultiStepLR(o, [30, 60]),
    "decay": lambda o: schedulers.ExponentialLR(o, 0.9),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=10),
    "warm-up": lambda o: schedulers.LinearLR(o, 0.1, total_iters=20),
    "own function": lambda o: schedulers.LambdaLR(o, lambda step: 1.0 / (1 + step)),
}


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.filterwarnings("ignore:Detected call")
def test_the_length_is_where_the_rate_is_lowest(name: str) -> None:
    optimizer = _optimizer()
    scheduler = ENDING[name](optimizer)
    rates = []
    for _ in range(99):  # one step of OneCycleLR is made when it is built
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert min(rates) == rates[-1]
    assert rates[-1] < 0.03 * max(rates)
    assert length_of(scheduler) == 100


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schedule_without_an_end_has_no_length(name: str) -> None:
    optimizer = _optimizer()
    scheduler = ENDLESS[name](optimizer)
    assert length_of(scheduler) is None
    assert scheduled_steps(optimizer, 50) is None


@pytest.mark.parametrize(
    ("length", "epoch_steps", "steps"),
    [
        pytest.param(8, 313, 8 * 313, id="epochs"),
        pytest.param(2504, 313, 2504, id="steps"),
        pytest.param(400, 313, None, id="doubtful"),
    ],
)
def test_the_unit_is_read_from_the_length(length: int, epoch_steps: int, steps: int | None) -> None:
    optimizer = _optimizer()
    scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=length)
    assert scheduled_steps(optimizer, epoch_steps) == steps
    del scheduler


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_controlled_run_is_planned_for_its_schedule(handed_over: bool, tmp_path: Path) -> None:
    samples, size, epochs = 130, 32, 6
    data = TensorDataset(torch.zeros(samples, 1))
    model = torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    steps = epochs * math.ceil(samples / size)
    scheduler = schedulers.CosineAnnealingLR(optimizer, T_max=steps)
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=size, target_loss=0.1, log_dir=tmp_path
    )
    if handed_over:
        scheduler = controller.schedule(scheduler)
    loader = controller.loader(DataLoader(data, batch_size=size, shuffle=True))
    for (x,) in loader:
        controller.backward(model(x).square().mean())
        controller.step()
        if handed_over:
            scheduler.step()
    controller.close()
    (run,) = tmp_path.rglob("run.json")
    assert json.loads(run.read_text())["context"]["planned_samples"] == epochs * samples
