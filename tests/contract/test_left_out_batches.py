"""A batch is left out without a word of 0 * loss; and what takes batches ahead is told why not."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.errors import DeliveryError
from rlbatch.testing import ScriptedPolicy

SAMPLES, BASE = 75, 8


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 3, generator=generator)
    y = x.sum(1, keepdim=True)
    y[20] = torch.nan  # one bad sample
    return TensorDataset(x, y, torch.arange(SAMPLES))


class Program:
    def __init__(self, scaler: Any = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        settings = {"policy": "fixed", "cost": "samples", **settings}
        self.controller = rlbatch.BatchController(
            self.model, self.optimizer, batch_size=BASE, scaler=scaler, **settings
        )
        self.loader = self.controller.loader(DataLoader(data(), BASE))
        self.seen: list[int] = []
        self.stepped: list[int] = []

    def train(self, epochs: int, *, late: bool = False) -> Program:
        for _ in range(epochs):
            step: list[int] = []
            for x, y, rows in self.loader:
                self.seen += rows.tolist()
                step += rows.tolist()
                loss = nn.functional.mse_loss(self.model(x), y)
                if late:
                    self.controller.backward(loss)
                    self.controller.unscale_()
                if not torch.isfinite(loss):
                    self.controller.skip()
                    step = []
                    continue
                if not late:
                    self.controller.backward(loss)
                if self.controller.step():
                    self.stepped += step
                    step = []
        return self

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def plain(epochs: int) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for x, y, _ in DataLoader(data(), BASE):
            loss = nn.functional.mse_loss(model(x), y)
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("late", [False, True])
def test_leaving_out_a_batch_is_what_the_plain_loop_does(late: bool) -> None:
    program = Program().train(3, late=late)
    assert torch.equal(program.weights, plain(3))
    assert program.controller.steps == 3 * 9
    assert program.controller.samples_seen == 3 * (SAMPLES - BASE)


@pytest.mark.parametrize("late", [False, True])
def test_it_goes_with_a_grad_scaler(late: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    program = Program(scaler).train(2, late=late)
    torch.testing.assert_close(program.weights, plain(2))
    # It has seen what is not finite where gradients were unscaled, once an epoch.
    assert scaler.get_scale() == (1.0 if late else 4.0)


def test_a_part_that_is_bad_takes_the_whole_step_along_and_nothing_else() -> None:
    program = Program(policy=ScriptedPolicy((2.0,)), micro_batch_size=5, lr_coupling="none")
    program.train(1)
    left_out = sorted(set(range(SAMPLES)) - set(program.stepped))
    assert 20 in left_out
    assert len(left_out) in (BASE, 4 * BASE)
    assert left_out == list(range(left_out[0], left_out[-1] + 1))
    assert len(program.stepped) == len(set(program.stepped))
    assert len(program.seen) < SAMPLES  # the parts behind the bad one did not come
    assert torch.isfinite(program.weights).all()


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_checkpoint_behind_a_batch_that_was_left_out_does_not_repeat_it(
    micro_batch_size: int | None,
) -> None:
    first = Program(micro_batch_size=micro_batch_size)
    for x, y, rows in first.loader:
        loss = nn.functional.mse_loss(first.model(x), y)
        if not torch.isfinite(loss):
            first.controller.skip()
            break
        first.controller.backward(loss)
        if first.controller.step():
            first.stepped += rows.tolist()
    saved = io.BytesIO()
    torch.save([first.controller.state_dict(), first.model.state_dict()], saved)
    saved.seek(0)
    controller, model = torch.load(saved, weights_only=True)
    second = Program(micro_batch_size=micro_batch_size)
    second.controller.load_state_dict(controller)
    second.model.load_state_dict(model)
    assert second.train(1).seen == list(range(24, SAMPLES))


def test_a_schedule_has_no_step_for_a_batch_that_was_left_out() -> None:
    program = Program()
    scheduler = torch.optim.lr_scheduler.StepLR(program.optimizer, 1)
    schedule = program.controller.schedule(scheduler)
    for _ in range(2):
        program.train(1)
        schedule.step()
    assert scheduler.last_epoch == 2 * 9


def test_what_is_missing_is_named_without_bad_advice() -> None:
    batches = iter(Program().loader)
    next(batches)
    with pytest.raises(DeliveryError, match=r"controller\.skip\(\).*prefetcher") as caught:
        next(batches)
    assert "0 * loss" not in str(caught.value)


def test_taking_batches_ahead_says_what_is_the_matter() -> None:
    with pytest.raises(DeliveryError, match=r"takes batches ahead.*list\(loader\).*num_workers"):
        list(Program().loader)


def test_there_has_to_be_a_batch() -> None:
    with pytest.raises(DeliveryError, match="none under way"):
        Program().controller.skip()
