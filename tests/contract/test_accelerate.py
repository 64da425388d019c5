"""The programs of this folder on Accelerate: what is refused, warned about or exact."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin

from rlbatch.errors import ConfigurationError, DeliveryError, RlbatchError
from rlbatch.integrations.accelerate import AcceleratedController
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, Rows, flat, network
from tests.contract.rank_programs import parts_without_weight
from tests.contract.situations import SITUATIONS, Growing, Host, failures
from tests.contract.test_divided_losses import (
    class_weights,
    dice,
    info_nce,
    padding,
    plain_mean,
    triplet,
    weight_of_classes,
)
from tests.rlbatch.integrations.steered import ByBits

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
GROW = ScriptedPolicy((1.0, 0.6, -2.0, 1.5))


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


class Loop:
    """A loop on Accelerate whose lines may be replaced."""

    def __init__(
        self,
        model: Any = None,
        *,
        accumulation: int = 1,
        schedule: Any = None,
        scaler: Any = None,
        **settings: Any,
    ) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        self.accelerator.scaler = scaler
        self.own = network() if model is None else model
        sgd = torch.optim.SGD(self.own.parameters(), lr=0.01)
        self.model, self.optimizer = self.accelerator.prepare(self.own, sgd)
        self.norms: list[float] = []
        sgd.register_step_pre_hook(
            lambda *_: self.norms.append(float(flat([p.grad for p in self.grown()]).norm()))
        )
        self.schedule: Any = None if schedule is None else schedule(self.optimizer)
        told: dict[str, Any] = {"policy": "fixed", "cost": "samples", "guard": None, **settings}
        self.controller = AcceleratedController(
            self.accelerator, self.model, self.optimizer, batch_size=BASE, **told
        )
        self.loader = self.controller.loader(DataLoader(Rows(), BASE // accumulation))

    def grown(self) -> Iterator[Any]:
        return (p for p in self.model.parameters() if p.grad is not None)

    def train(
        self,
        loss: Any = plain_mean,
        before: Any = None,
        behind: Any = None,
        after: Any = None,
    ) -> Loop:
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                if before is not None:
                    before(self)
                self.controller.backward(loss(self.model, batch))
                if behind is not None:
                    behind(self)
                self.controller.step()
                if after is not None:
                    after(self)
        return self


def refused(error: type[RlbatchError], words: str, run: Any) -> None:
    with pytest.raises(error, match=words):
        run()


# -- losses --


def test_weights_of_parts_are_those_of_the_whole_batch() -> None:
    """Class weights in parts of 3, against autograd over all samples of the step."""
    loop = Loop(micro_batch_size=3, policy=GROW)
    model, step, errors = loop.own, list[Any](), list[float]()
    wanted: list[Tensor] = []

    def check(*_: Any) -> None:
        found = flat([p.grad for p in model.parameters()])
        errors.append(float((found - wanted.pop()).norm() / found.norm()))

    loop.optimizer.optimizer.register_step_pre_hook(check)
    for batch in loop.loader:
        step.append(batch)
        loop.controller.backward(class_weights(model, batch), weight=weight_of_classes(batch))
        if loop.controller.batch_complete:
            whole = [torch.cat(parts) for parts in zip(*step, strict=True)]
            grads = torch.autograd.grad(class_weights(model, whole), list(model.parameters()))
            wanted.append(flat(list(grads)))
            step.clear()
        loop.controller.step()
    assert len(errors) > 4
    assert max(errors) < 1e-12


@pytest.mark.parametrize("loss", [class_weights, padding, dice, info_nce, triplet])
@pytest.mark.parametrize("divisible", [True, False])
def test_a_batch_that_fits_has_the_users_gradient_whatever_the_loss(
    loss: Any, divisible: bool
) -> None:
    settings = {} if divisible else {"divisible": False, "micro_batch_size": BASE}
    loop = Loop(**settings).train(loss)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in DataLoader(Rows(), BASE):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(flat(list(loop.own.parameters())), flat(list(model.parameters())))


def test_parts_that_do_not_add_up_are_warned_about() -> None:
    loop = Loop(micro_batch_size=3)
    with pytest.warns(RuntimeWarning, match="its parts do not add up"):
        loop.train(class_weights)


# -- calls between two parts --


def test_the_prepared_optimizers_zero_grad_at_the_top_of_the_loop() -> None:
    """Accelerate's own loop would lose all but the last part's gradient there."""
    loop = Loop(accumulation=2)
    refused(
        DeliveryError,
        r"\.grad vanished",
        lambda: loop.train(before=lambda loop: loop.optimizer.zero_grad()),
    )


def test_the_models_zero_grad_between_parts() -> None:
    loop = Loop(accumulation=2)
    refused(
        DeliveryError,
        r"\.grad vanished",
        lambda: loop.train(before=lambda loop: loop.model.zero_grad()),
    )


def test_clipping_between_parts() -> None:
    loop = Loop(accumulation=2)

    def clip(loop: Loop) -> None:
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)

    refused(DeliveryError, r"\.grad was changed", lambda: loop.train(behind=clip))


# -- optimizers --


def test_a_step_beside_the_controllers() -> None:
    loop = Loop()
    refused(DeliveryError, "beside", lambda: loop.train(behind=lambda loop: loop.optimizer.step()))


def test_a_second_optimizer_of_the_same_parameters() -> None:
    loop = Loop()
    second = torch.optim.SGD(loop.own.parameters(), lr=0.1)
    refused(
        ConfigurationError,
        "second optimizer",
        lambda: loop.train(behind=lambda _: second.step()),
    )


def test_a_second_optimizer_of_another_model_between_parts() -> None:
    second = torch.optim.SGD(network().parameters(), lr=0.1)
    Loop().train(behind=lambda _: second.step())
    loop = Loop(accumulation=2)
    refused(DeliveryError, "between two parts", lambda: loop.train(before=lambda _: second.step()))


def test_hooks_that_step_within_the_backward_pass() -> None:
    loop = Loop()
    second = torch.optim.SGD(loop.own.parameters(), lr=0.1)
    for parameter in loop.own.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: second.step())
    refused(ConfigurationError, "within the backward pass", loop.train)


def test_lbfgs_and_an_optimizer_of_another_model() -> None:
    accelerator, model = Accelerator(cpu=True), network()
    for optimizer, words in (
        (torch.optim.LBFGS(model.parameters()), "needs a closure"),
        (torch.optim.SGD(network().parameters(), lr=0.1), "holds no parameter"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            AcceleratedController(accelerator, model, optimizer, batch_size=BASE)


def test_two_controllers_on_one_model() -> None:
    one = Loop()
    two = Loop(one.own)
    next(iter(one.loader))
    held = iter(two.loader)
    next(held)
    with pytest.raises(ConfigurationError, match="Another controller has begun"):
        one.controller.step()


# -- settings --


def test_steps_that_are_carried_over_an_epochs_end() -> None:
    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    model = network()
    with pytest.raises(ConfigurationError, match="sync_with_dataloader=False"):
        AcceleratedController(
            accelerator, model, torch.optim.SGD(model.parameters(), lr=0.1), batch_size=BASE
        )


@pytest.mark.parametrize("batch_size", ["32", 8.0, 0, True])
def test_batch_sizes_that_are_none(batch_size: Any) -> None:
    accelerator, model = Accelerator(cpu=True), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="whole number of samples"):
        AcceleratedController(accelerator, model, optimizer, batch_size=batch_size)


@pytest.mark.parametrize("target", [-1.0, float("nan"), "0.1"])
def test_targets_that_mean_nothing(target: Any) -> None:
    refused(ConfigurationError, "target_loss", lambda: Loop(target_loss=target))


# -- schedules --


def linear(optimizer: Any) -> Any:
    steps = -(-len(Rows()) // BASE)
    return LinearLR(optimizer, 1.0, 0.1, total_iters=steps)


def test_a_schedule_that_the_loop_steps_itself_ends_where_it_would() -> None:
    for prepared in (False, True):
        loop = Loop(policy=GROW, schedule=linear)
        own = loop.accelerator.prepare(loop.schedule) if prepared else loop.schedule
        schedule = loop.controller.schedule(own)
        loop.train(after=lambda _, schedule=schedule: schedule.step())
        assert schedule.get_last_lr() == [pytest.approx(0.001)]


def test_a_schedule_that_is_left_as_it_was_is_warned_about() -> None:
    loop = Loop(policy=GROW, schedule=linear)
    assert loop.schedule is not None
    with pytest.warns(RuntimeWarning, match=r"controller\.schedule\(scheduler\)"):
        loop.train(after=lambda loop: loop.schedule.step())


def test_the_schedule_of_the_controller_is_not_warned_about() -> None:
    """Also one that was made with the prepared optimizer."""
    loop = Loop(policy=GROW, schedule=linear)
    controlled = AcceleratedController(
        loop.accelerator,
        loop.model,
        loop.optimizer,
        batch_size=BASE,
        scheduler=loop.schedule,
        policy=GROW,
        cost="samples",
    )
    loop.controller, loop.loader = controlled, controlled.loader(DataLoader(Rows(), BASE))
    loop.train()
    assert loop.schedule.get_last_lr() == [pytest.approx(0.001)]


@pytest.mark.filterwarnings("ignore:Seems like .optimizer.step", "ignore:Detected call of")
@pytest.mark.parametrize("given", [True, False])
def test_a_prepared_schedule_waits_for_a_scaler(given: bool) -> None:
    """Accelerate's own makes no step behind an overflow, although the loop steps it there."""
    rates: list[float] = []
    for alone in (True, False):
        loop, bad = Loop(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10)), (2, 5)
        schedule: Any = loop.accelerator.prepare_scheduler(linear(loop.optimizer.optimizer))
        told: dict[str, Any] = {"scheduler": schedule} if given else {}
        batches: Any = loop.accelerator.prepare(DataLoader(Rows(), BASE))
        if not alone:
            loop.controller = AcceleratedController(
                loop.accelerator, loop.model, loop.optimizer, batch_size=BASE, policy="fixed",
                cost="samples", **told,
            )  # fmt: skip
            batches = loop.controller.loader(batches)
            schedule = schedule if given else loop.controller.schedule(schedule)
        for step, batch in enumerate(batches):
            loss = plain_mean(loop.model, batch)
            if step in bad:
                loss.register_hook(lambda gradient: gradient * torch.inf)
            if alone:
                loop.accelerator.backward(loss)
                loop.optimizer.step()
                loop.optimizer.zero_grad()
            else:
                loop.controller.backward(loss)
                loop.controller.step()
            if alone or not given:
                schedule.step()
            rates.append(schedule.get_last_lr()[0])
    count = len(rates) // 2
    assert rates[:count] == rates[count:]
    assert len(set(rates)) == count - 2


# -- batches that are left out --


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_left_out_is_left_out_whole(accumulation: int) -> None:
    """The third step: the plain loop goes on without it, and so does its schedule."""
    loop = Loop(accumulation=accumulation, schedule=linear)
    controlled = AcceleratedController(
        loop.accelerator,
        loop.model,
        loop.optimizer,
        batch_size=BASE,
        scheduler=loop.schedule,
        policy="fixed",
        cost="samples",
        guard=None,
    )
    at = steps = 0
    for batch in controlled.loader(DataLoader(Rows(), BASE // accumulation)):
        with loop.accelerator.accumulate(loop.model):
            if at == 2 * BASE + (accumulation - 1) * BASE // 2:
                controlled.skip()
                assert all(p.grad is None for p in loop.own.parameters())
                at = 3 * BASE
                continue
            controlled.backward(plain_mean(loop.model, batch))
            steps += bool(controlled.step())
        at += len(batch[0])

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = linear(optimizer)
    for step, batch in enumerate(DataLoader(Rows(), BASE)):
        if step == 2:
            continue
        plain_mean(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert loop.schedule.get_last_lr() == schedule.get_last_lr()
    torch.testing.assert_close(
        flat(list(loop.own.parameters())), flat(list(model.parameters())), rtol=1e-9, atol=1e-12
    )


# -- states --


def test_a_state_that_is_refused_is_not_taken_at_all() -> None:
    saved = Loop(policy=GROW).train().controller.state_dict()
    fresh = Loop(policy=GROW)
    before = fresh.controller.state_dict()
    for damaged in (
        {**saved, "control_loop": {}},
        {**saved, "loader": None},
        {**saved, "base_batch_size": 4},
        {},
        None,
    ):
        with pytest.raises(ConfigurationError):
            fresh.controller.load_state_dict(damaged)
    after = fresh.controller.state_dict()
    assert str(after) == str(before)
    assert fresh.train().norms == Loop(policy=GROW).train().norms


# -- data --


def test_a_dataset_that_grows_to_what_drop_last_would_leave_out() -> None:
    loop, data = Loop(), Growing(40, 58)
    loop.controller.close()
    controller = AcceleratedController(
        loop.accelerator, loop.model, loop.optimizer, batch_size=BASE, policy="fixed"
    )
    loop.controller = controller
    loop.loader = controller.loader(DataLoader(data, BASE, drop_last=True))
    loop.train()
    assert controller.controller.steps == 5
    data.epoch = 1
    refused(ConfigurationError, "drop_last leaves out 2 samples of each epoch", loop.train)


# -- what the plain loop has --


class OnAccelerate(Host):
    """One process on Accelerate."""

    takes_all = True

    def prepare(self, model: nn.Module, make: Callable[[Any], Any]) -> tuple[Any, Any]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True)
        self.accelerator.scaler = self.scaler  # as with fp16 on a GPU
        prepared: Any = self.accelerator.prepare(model, make(model))
        return prepared

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        settings.pop("scaler", None)
        return AcceleratedController(self.accelerator, model, optimizer, **settings)


@pytest.mark.slow
def test_accelerate_is_in_no_situation_worse_than_the_plain_loop() -> None:
    found = failures(OnAccelerate(), (*SITUATIONS, parts_without_weight))
    assert not found, "\n".join(found.values())


def test_a_graph_that_is_kept_changes_nothing_and_other_arguments_are_refused() -> None:
    """The policy goes another way where one bit of what it sees differs."""
    ends: list[Tensor] = []
    for told in ({}, {"retain_graph": True}):
        loop = Loop(policy=ByBits(), micro_batch_size=3, noise_rate=5.0)
        for batch in loop.loader:
            loss = plain_mean(loop.model, batch)
            loop.controller.backward(loss, **told)
            if told:
                torch.autograd.grad(loss, list(loop.own.parameters()), allow_unused=True)
            loop.controller.step()
        ends.append(flat([p.detach() for p in loop.own.parameters()]))
    assert torch.equal(*ends)
    loop = Loop()
    loss = plain_mean(loop.model, next(iter(loop.loader)))
    refused(
        ConfigurationError,
        "does not pass create_graph on",
        lambda: loop.controller.backward(loss, create_graph=True),
    )


def test_a_schedule_stepped_before_the_optimizer_has_the_rates_of_accelerate_alone() -> None:
    def make(optimizer: Any) -> Any:
        return LinearLR(optimizer, 1.0, 0.1, total_iters=20)

    loop = Loop(schedule=make)
    data, rates = DataLoader(Rows(), BASE), list[list[float]]()
    taken = loop.controller.schedule(loop.schedule)
    found: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own, of the order
        for batch in loop.loader:
            loop.controller.backward(plain_mean(loop.model, batch))
            taken.step()
            found.append(loop.optimizer.param_groups[0]["lr"])
            loop.controller.step()
        rates.append(found)
        accelerator = Accelerator(cpu=True)
        model = network()
        prepared: Any = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
        schedule, alone = make(prepared[1]), list[float]()
        for batch in data:
            accelerator.backward(plain_mean(prepared[0], batch))
            schedule.step()
            alone.append(prepared[1].param_groups[0]["lr"])
            prepared[1].step()
            prepared[1].zero_grad()
        rates.append(alone)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == len(rates[0]) > 5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("accelerator", True, "accelerator must be of the class Accelerator; got True"),
        ("model", nn.Linear, r"torch\.nn\.Module, got the class Linear"),
        ("optimizer", "sgd", "torch optimizer with param_groups"),
        ("batch_size", 8.0, "batch_size must be a whole number of samples"),
        ("scheduler", True, r"has step\(\), got bool"),
        ("config", {}, "config must be of the class ControllerConfig; got dict"),
    ],
)
def test_arguments_of_another_kind(name: str, value: Any, words: str) -> None:
    loop = Loop()
    told = {
        "accelerator": loop.accelerator, "model": loop.model, "optimizer": loop.optimizer,
        "batch_size": BASE, name: value,
    }  # fmt: skip
    refused(ConfigurationError, words, lambda: AcceleratedController(**told))
    told[name] = {"batch_size": np.int64(BASE)}.get(name)
    if told[name] is not None:
        assert type(AcceleratedController(**told).base_batch_size) is int
