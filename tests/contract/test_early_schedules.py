"""Schedules that a loop steps before the optimizer: as in the plain loop, torch's warning included.

Each step then has the next one's rate. The plain loop in the same order is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import rlbatch
from rlbatch.testing import ScriptedPolicy
from tests.contract.test_schedules import SCHEDULES, Make
from tests.helpers import drawn_rows

SAMPLES, BASE, EPOCHS = 75, 8, 3
STEPS = 30  # of the plain loop
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")


class Run:
    """A loop that steps its schedule before the optimizer, with rlbatch or alone."""

    def __init__(
        self, make: Make, policy: Any = None, *, scaled: bool = False, **told: Any
    ) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(3, 1)
        self.optimizer = SGD(self.model.parameters(), lr=0.1, momentum=0.5)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if scaled else None
        self.schedule: Any = make(self.optimizer, STEPS + 2)
        self.loader: Any = DataLoader(drawn_rows(SAMPLES), BASE)
        self.controller: Any = None
        self.rates: list[float] = []
        self.optimizer.register_step_pre_hook(
            lambda *_: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )
        if policy is not None:
            told = {"cost": "samples", "lr_coupling": "none", "guard": None, **told}
            self.controller = rlbatch.BatchController(
                self.model, self.optimizer, batch_size=BASE, policy=policy, scaler=self.scaler,
                **told,
            )  # fmt: skip
            self.schedule = self.controller.schedule(self.schedule)
            self.loader = self.controller.loader(self.loader)

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def step(self, loss: Tensor) -> None:
        if self.controller is not None:
            self.controller.backward(loss)
            self.schedule.step()
            self.controller.step()
            return
        self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.schedule.step()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def train(
        self,
        epochs: int = EPOCHS,
        loss: Callable[[int, Tensor], Tensor] = lambda _, loss: loss,
        stop: int = -1,
    ) -> Run:
        number = 0
        for _ in range(epochs):
            for x, y in self.loader:
                self.step(loss(number, nn.functional.mse_loss(self.model(x), y)))
                number += 1
                if number == stop:
                    return self
        return self


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("parts", [None, 3])
def test_at_a_fixed_size_each_step_has_the_plain_loops_rate(make: Make, parts: int | None) -> None:
    plain = Run(make).train()
    ours = Run(make, "fixed", micro_batch_size=parts).train()
    assert ours.rates == plain.rates
    assert len(set(plain.rates)) > 3
    assert torch.allclose(plain.weights, ours.weights, rtol=1e-5, atol=1e-7)
    if parts is None:
        assert torch.equal(plain.weights, ours.weights)


def test_torch_warns_of_the_order_as_in_the_plain_loop() -> None:
    for policy in (None, "fixed"):
        with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step"):
            Run(SCHEDULES[0], policy).train(1)


def test_a_size_that_changes_ends_at_the_plain_loops_rate() -> None:
    plain = Run(SCHEDULES[0]).train()
    for script in ((1.0, 1.0), (-1.0, -0.5), (1.0, -2.0, 0.6)):
        run = Run(SCHEDULES[0], ScriptedPolicy(script), min_batch_size=2).train()
        assert run.schedule.scheduler.last_epoch == STEPS
        assert run.rates[-1] == plain.rates[-1]
        assert len(run.rates) != STEPS


def test_a_loop_that_steps_it_behind_the_last_step_at_the_next_batch() -> None:
    """A batch is under way then, too, and the rate is that of the usual order."""

    def rates(policy: Any) -> list[float]:
        run, begun = Run(SCHEDULES[0], policy), False
        for _ in range(EPOCHS):
            for x, y in run.loader:
                if begun:
                    run.schedule.step()
                begun = True
                loss = nn.functional.mse_loss(run.model(x), y)
                if run.controller is None:
                    run.optimizer.zero_grad()
                    loss.backward()
                    run.optimizer.step()
                else:
                    run.controller.backward(loss)
                    run.controller.step()
        return run.rates

    assert rates("fixed") == rates(None)


def test_batches_that_are_left_out() -> None:
    plain, ours = Run(SCHEDULES[0]), Run(SCHEDULES[0], "fixed")
    for run in (plain, ours):
        for number, (x, y) in enumerate(run.loader):
            if number in (0, 3, 4):
                run.schedule.step()  # and then finds out
                if run.controller is not None:
                    run.controller.skip()
                continue
            run.step(nn.functional.mse_loss(run.model(x), y))
    assert ours.rates == plain.rates
    assert torch.equal(plain.weights, ours.weights)


def test_steps_that_a_scaler_leaves_out() -> None:
    def broken(number: int, loss: Tensor) -> Tensor:
        return loss * torch.inf if number in (2, 3, 11) else loss

    plain, ours = (Run(SCHEDULES[0], p, scaled=True).train(loss=broken) for p in (None, "fixed"))
    assert ours.rates == plain.rates
    assert len(plain.rates) == STEPS - 3
    assert torch.equal(plain.weights, ours.weights)


@pytest.mark.parametrize("stop", [1, 9, 10, 14])
@pytest.mark.parametrize("policy", ["fixed", ScriptedPolicy((-0.6, 1.0, -0.3, 0.6))])
def test_a_resumed_run_goes_on_alike(stop: int, policy: Any) -> None:
    def make() -> Run:
        return Run(SCHEDULES[0], policy, min_batch_size=2)

    whole, first, second = make().train(), make().train(stop=stop), make()
    saved = first.controller.state_dict(), first.schedule.state_dict()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.controller.load_state_dict(saved[0])
    second.schedule.load_state_dict(saved[1])
    while second.loader.sampler.epoch < EPOCHS:
        second.train(1)
    assert first.rates + second.rates == whole.rates
    assert torch.equal(second.weights, whole.weights)
