"""Schedules by steps: the plain loop's course in samples, whatever the sizes; or a warning."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.data import SampleSchedule
from rlbatch.errors import ConfigurationError
from rlbatch.testing import ScriptedPolicy

Make = Callable[[Any, int], Any]
SCHEDULES: list[Make] = [
    lr_scheduler.CosineAnnealingLR,
    lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n + 1),
    lambda o, n: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (1 + step)),
    lambda o, n: lr_scheduler.StepLR(o, 3, 0.5),
    lambda o, n: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, n)], [4]
    ),
]


def data(samples: int) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 3) * 0.01, torch.randn(samples, 1))


def plain_rates(samples: int, size: int, epochs: int, make: Make) -> list[float]:
    """Return the rate behind each step of the plain loop."""
    model = nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = make(optimizer, epochs * -(-samples // size))
    rates: list[float] = []
    for _ in range(epochs):
        for x, y in DataLoader(data(samples), size):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    return rates


class Controlled:
    """The same loop with a controller; how the schedule is stepped is up to the test."""

    def __init__(
        self,
        samples: int,
        size: int,
        make: Make,
        total: int,
        drop_last: bool = False,
        **settings: Any,
    ) -> None:
        settings = {
            "policy": "fixed",
            "cost": "samples",
            "lr_coupling": "none",
            "guard": None,
            **settings,
        }
        self.model = nn.Linear(3, 1)
        self.optimizer = SGD(self.model.parameters(), lr=1.0)
        self.scheduler = make(self.optimizer, total)
        self.controller = rlbatch.BatchController(
            self.model, self.optimizer, batch_size=size, **settings
        )
        self.loader = self.controller.loader(DataLoader(data(samples), size, drop_last=drop_last))
        self.rates: list[float] = []

    def train(self, epochs: int, step: Callable[[Controlled, int], Any], stop: int = -1) -> None:
        for _ in range(epochs):
            for x, y in self.loader:
                self.controller.backward(nn.functional.mse_loss(self.model(x), y))
                samples = self.controller.step()
                step(self, samples)
                if samples:
                    self.rates.append(self.optimizer.param_groups[0]["lr"])
                if len(self.rates) == stop:
                    return


def taken_over(run: Controlled) -> Callable[[Controlled, int], Any]:
    schedule = run.controller.schedule(run.scheduler)
    return lambda *_: schedule.step()


def by_hand(run: Controlled) -> Callable[[Controlled, int], Any]:
    schedule = SampleSchedule(run.scheduler, run.controller.base_batch_size)
    return lambda _, samples: schedule.step(samples)


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("stepped", [taken_over, by_hand])
@pytest.mark.parametrize(("samples", "size", "parts"), [(65, 64, None), (75, 8, None), (75, 8, 3)])
def test_at_a_fixed_size_the_schedule_is_the_plain_loops(
    make: Make, stepped: Any, samples: int, size: int, parts: int | None
) -> None:
    expected = plain_rates(samples, size, 3, make)
    run = Controlled(samples, size, make, len(expected), micro_batch_size=parts)
    run.train(3, stepped(run))
    assert run.rates == expected


def test_65_samples_at_64_for_10_epochs_make_20_steps_of_the_schedule() -> None:
    expected = plain_rates(65, 64, 10, SCHEDULES[0])
    assert len(expected) == 20
    for script in ((), (-1.0,), (-1.0, -2.0, 3.0, -1.0, 0.3)):
        run = Controlled(65, 64, SCHEDULES[0], 20, policy=ScriptedPolicy(script), min_batch_size=1)
        run.train(10, taken_over(run))
        assert run.scheduler.last_epoch == 20
        assert run.rates[-1] == expected[-1]


@pytest.mark.parametrize("stepped", [taken_over, by_hand])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_epoch_ends_where_the_plain_loops_does(stepped: Any, drop_last: bool) -> None:
    policy = ScriptedPolicy((1.0, 1.0, -0.5, 0.7))
    run = Controlled(75, 8, SCHEDULES[0], 100, drop_last, policy=policy)
    step = stepped(run)
    per_epoch = 75 // 8 if drop_last else 10
    for epoch in range(4):
        run.train(1, step)
        # With drop_last, what the last step leaves out counts from the next one on.
        assert per_epoch * (epoch + 1) - 6 * drop_last <= run.scheduler.last_epoch
        assert run.scheduler.last_epoch <= per_epoch * (epoch + 1)


@pytest.mark.parametrize("make", SCHEDULES)
def test_a_schedule_left_as_it_was_is_noticed_at_the_second_step(make: Make) -> None:
    run = Controlled(75, 8, make, 40, policy=ScriptedPolicy((1.0,)))
    with pytest.warns(RuntimeWarning, match=r"stepped at every batch.*controller\.schedule\("):
        run.train(1, lambda *_: run.scheduler.step(), stop=2)


def test_a_schedule_of_the_users_own_is_noticed_too() -> None:
    run = Controlled(75, 8, SCHEDULES[0], 40, policy=ScriptedPolicy((1.0,)))

    def decay(*_: Any) -> None:
        run.optimizer.param_groups[0]["lr"] *= 0.9

    with pytest.warns(RuntimeWarning, match="stepped at every batch"):
        run.train(1, decay)


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in ("fixed", ScriptedPolicy((1.0, -1.0))):
            run = Controlled(75, 8, SCHEDULES[0], 40, policy=policy)
            run.train(2, taken_over(run))
        run = Controlled(75, 8, SCHEDULES[0], 40)
        run.train(1, lambda *_: run.scheduler.step())  # a fixed size has the plain loop's steps
        run = Controlled(75, 8, SCHEDULES[3], 40, policy=ScriptedPolicy((1.0,)))
        for _ in range(3):
            run.train(1, lambda *_: None)
            run.scheduler.step()


@pytest.mark.parametrize("stop", [1, 4, 7, 9])
@pytest.mark.parametrize("inner", [False, True])
def test_a_resumed_schedule_goes_on_where_it_was(stop: int, inner: bool) -> None:
    def make() -> Controlled:
        return Controlled(75, 8, SCHEDULES[0], 40, policy=ScriptedPolicy((-0.6, 1.0, -0.3, 0.6)),
                          min_batch_size=2)  # fmt: skip

    whole = make()
    whole.train(4, taken_over(whole))
    first = make()
    schedule = first.controller.schedule(first.scheduler)
    first.train(4, lambda *_: schedule.step(), stop=stop)
    saved = io.BytesIO()
    own = first.scheduler.state_dict() if inner else schedule.state_dict()
    torch.save([first.controller.state_dict(), own, first.optimizer.state_dict()], saved)
    saved.seek(0)
    controller, own, optimizer = torch.load(saved, weights_only=True)
    second = make()
    second.optimizer.load_state_dict(optimizer)
    second.controller.load_state_dict(controller)
    schedule = second.controller.schedule(second.scheduler)
    (second.scheduler if inner else schedule).load_state_dict(own)
    epochs = 4 - second.loader.sampler.epoch
    second.train(epochs, lambda *_: schedule.step())
    assert first.rates + second.rates == whole.rates


def test_a_schedule_that_follows_a_metric_is_refused() -> None:
    run = Controlled(75, 8, SCHEDULES[0], 40)
    with pytest.raises(ConfigurationError, match=r"ReduceLROnPlateau.*metric"):
        run.controller.schedule(lr_scheduler.ReduceLROnPlateau(run.optimizer))
