"""The situations of this folder as programs that run on any host of a plain loop.

A host is what the loop runs on: ranks under DistributedDataParallel or FSDP2, or Accelerate. Each
program returns nothing where all is as promised, and raises otherwise.
"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler

from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import BASE, CLASSES, Rows, error, flat, gradient_of_all, network
from tests.contract.test_divided_losses import (
    class_weights,
    dice,
    info_nce,
    triplet,
)
from tests.contract.test_rising_loss import ramp

# Torch's own words, of an output that is a view: of any `Linear` on sequences.
IGNORED = ("FSDP2-wrapped module",)
GROW = ScriptedPolicy((2.0,))
OFTEN: dict[str, Any] = {  # other sizes, every second step
    "policy": ScriptedPolicy((1.0, 0.6, -1.0, 0.0, 0.4, -1.0)),
    **{f"{name}_chunk_steps": 2 for name in ("first", "min", "max")},
}
Call = Callable[["Run", int], Any]
Situation = Callable[[Any], None]


def plain_mean(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[1]).mean(1), batch[2])


def tokens_of_some(model: nn.Module, batch: Any) -> Tensor:
    """A mean over the tokens that count; 0 where none does."""
    _, x, _, tokens = batch
    found = model(x).reshape(-1, CLASSES)
    total = nn.functional.cross_entropy(found, tokens.reshape(-1), reduction="sum")
    return total / (tokens >= 0).sum().clamp_min(1)


class Measuring(ScriptedPolicy):
    """Asks for the gradient noise."""

    needs_gradient_noise = True


class Host:
    """One process on torch alone; others replace its methods."""

    world_size = 1
    takes_all = False  # drop_last is refused where it would leave samples out
    scaler: Any = None  # of the run that is made next

    def __init__(self) -> None:
        self.said: list[str] = []  # in refusing

    @contextmanager
    def refuses(self, error: type[Exception], match: str = ".") -> Iterator[None]:
        """Require that the block is refused."""
        with pytest.raises(error, match=match) as caught:
            yield
        self.said.append(str(caught.value))

    @contextmanager
    def warns_once(self, match: str) -> Iterator[None]:
        """Require that the process that decides warns of what concerns all."""
        with pytest.warns(RuntimeWarning, match=match):
            yield

    def prepare(self, model: nn.Module, make: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Return the model as it is trained, and its optimizer."""
        return model, make(model)

    def control(self, model: Any, optimizer: Any, **settings: Any) -> Any:
        """Return a controller."""
        raise NotImplementedError

    def source(self, data: Any, batch_size: int, sampler: Any = None) -> DataLoader[Any]:
        """Return a loader of this process for a batch size of all."""
        sampler = Ordered(len(data)) if sampler is None else sampler
        return DataLoader(data, batch_size // self.world_size, sampler=sampler)

    def gather(self, values: Any) -> list[Any]:
        """Return what each process has."""
        return [values]

    @property
    def last(self) -> bool:
        """Whether this is the last of the processes."""
        return True

    def whole(self, tensor: Any) -> Tensor:
        """Return a tensor put together from its shards."""
        return tensor.detach().clone().reshape(-1)

    def own(self, tensor: Any) -> Tensor:
        """Return what this process has of a tensor."""
        return tensor


class Ordered(Sampler[int]):
    """The samples in their order, perhaps in groups that it names."""

    def __init__(self, count: int, **named: int) -> None:
        self.count = count
        self.__dict__.update(named)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)


def adam(model: nn.Module) -> Any:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)


class Run:
    """A training on a host, and what its steps were made of."""

    def __init__(
        self,
        host: Host,
        model: nn.Module | None = None,
        make: Callable[[Any], Any] = sgd,
        *,
        samples: int = 76,
        base: int = BASE,
        sampler: Any = None,
        scaler: Any = None,
        **settings: Any,
    ) -> None:
        self.host, self.data, host.scaler = host, Rows(samples), scaler
        self.model, self.optimizer = host.prepare(network() if model is None else model, make)
        self.inner = getattr(self.optimizer, "optimizer", self.optimizer)
        told = {"cost": "samples", "lr_coupling": "none", "policy": "fixed", "on_error": "raise"}
        told |= settings if scaler is None else {"scaler": scaler, **settings}
        self.controller = host.control(self.model, self.optimizer, batch_size=base, **told)
        self.loader = self.controller.loader(host.source(self.data, base, sampler))
        self.steps: list[list[int]] = []
        self.rates: list[float] = []
        self.gradients: list[Tensor] = []
        self.inner.register_step_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        self.gradients.append(torch.cat([self.host.whole(p.grad) for p in self.trained()]))
        self.rates.append(float(self.inner.param_groups[0]["lr"]))

    def trained(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def weights(self) -> Tensor:
        return torch.cat([self.host.whole(p) for p in self.trained()])

    def train(
        self,
        loss: Any = plain_mean,
        *,
        epochs: int = 1,
        before: Call | None = None,
        behind: Call | None = None,
        after: Call | None = None,
        until: int = -1,
    ) -> Run:
        for epoch in range(epochs):
            step: list[int] = []
            for batch in self.loader:
                step += batch[0].tolist()
                if before is not None:
                    before(self, epoch)
                self.controller.backward(loss(self.model, batch))
                if behind is not None:
                    behind(self, epoch)
                if self.controller.step():
                    self.steps.append([i for own in self.host.gather(step) for i in own])
                    step = []
                if after is not None:
                    after(self, epoch)
                if self.controller.steps == until:
                    return self
        return self


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for words in IGNORED:
            warnings.filterwarnings("ignore", words)
        yield


# -- losses --


def parts_that_do_not_add_up(host: Host) -> None:
    def root(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[1]).square().mean().sqrt()

    for loss in (class_weights, tokens_of_some, dice, info_nce, triplet, root):
        with pytest.warns(RuntimeWarning, match="do not add up"):
            Run(host, micro_batch_size=3, policy=GROW).train(loss)


def a_sum_that_grows(host: Host) -> None:
    with pytest.warns(RuntimeWarning, match="the loss is a sum over samples") as said:
        Run(host, make=still, policy=ScriptedPolicy((1.0, 1.0, -0.5, 0.3))).train(
            lambda model, batch: model(batch[1]).square().sum(), epochs=2
        )
    assert sum("is a sum over" in str(warning.message) for warning in said) == 1


def a_loss_that_cannot_be_divided(host: Host) -> None:
    """Each process has its own loss of its whole part; they are averaged by samples."""
    limit = 2 * BASE // host.world_size
    run = Run(host, make=still, policy=GROW, micro_batch_size=limit, divisible=False)
    own: list[Tensor] = []

    def note(batch: Any) -> None:
        alone = gradient_of_all(network(), dice, batch)
        counted = host.gather((len(batch[0]), alone))
        total = sum(count for count, _ in counted)
        own.append(sum((count / total * g for count, g in counted), torch.zeros_like(alone)))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        note(batch)
        return dice(model, batch)

    run.train(loss, epochs=2)
    assert max(map(len, run.steps)) == 2 * BASE
    assert max(map(error, run.gradients, own)) < 1e-12


def still(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.0)


# -- calls between parts --


def zeroing_between_parts(host: Host) -> None:
    with host.refuses(DeliveryError, match=r"\.grad vanished"):
        Run(host, micro_batch_size=2).train(before=lambda run, _: run.inner.zero_grad())


def clipping_between_parts(host: Host) -> None:
    def clip(run: Run, _: int) -> None:
        nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3)

    with host.refuses(DeliveryError, match=r"\.grad was changed"):
        Run(host, micro_batch_size=2).train(behind=clip)


def clipping_whole_batches(host: Host) -> None:
    def clip(run: Run, _: int) -> None:
        if run.controller.batch_complete:
            nn.utils.clip_grad_norm_(run.model.parameters(), 1e-2)

    run = Run(host, make=still, micro_batch_size=3, policy=GROW).train(behind=clip)
    for rows, found in zip(run.steps, run.gradients, strict=True):
        whole = gradient_of_all(network(), plain_mean, run.data.batch(rows))
        assert error(found, whole * (1e-2 / (float(whole.norm()) + 1e-6))) < 1e-12


def gradients_left_over(host: Host) -> None:
    """A backward pass behind each step, as of a generator or of an evaluation."""

    def leave(run: Run, _: int) -> None:
        if run.controller.delivered is None:
            run.model(run.data.x[:4]).square().mean().backward()

    def leave_and_zero(run: Run, _: int) -> None:
        leave(run, _)
        run.inner.zero_grad()

    with pytest.warns(RuntimeWarning, match="begins with gradients that none") as said:
        Run(host).train(after=leave)
    assert sum("begins with gradients" in str(warning.message) for warning in said) == 1
    with silence():
        Run(host).train(after=leave_and_zero)
        Run(host).train(after=lambda run, _: run.inner.zero_grad(set_to_none=False))


def averages_between_parts(host: Host) -> None:
    average = AveragedModel(network())
    with host.refuses(DeliveryError, match="AveragedModel was updated"):
        Run(host, micro_batch_size=2).train(after=lambda *_: average.update_parameters(network()))


def a_failed_backward_pass(host: Host) -> None:
    run = Run(host)
    for number, batch in enumerate(run.loader):
        loss = plain_mean(run.model, batch)
        if number != 1:
            run.controller.backward(loss)
            run.controller.step()
            continue
        with pytest.raises(RuntimeError, match="does not require grad"):
            run.controller.backward(loss.detach())
        with host.refuses(DeliveryError, match="backward pass of this batch has failed"):
            run.controller.step()
        run.controller.skip()
    assert run.controller.steps == len(run.gradients) == 9


# -- schedules --


def a_schedule_by_steps(host: Host) -> None:
    run = Run(host)
    schedule = run.controller.schedule(schedules.LinearLR(run.inner, 1.0, 0.1, 20))
    run.train(epochs=2, after=lambda *_: schedule.step())
    plain = sgd(network())
    alone, expected = schedules.LinearLR(plain, 1.0, 0.1, 20), list[float]()
    for _ in range(20):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        alone.step()
    assert run.rates == expected


def sixty_five_samples(host: Host) -> None:
    policy = ScriptedPolicy((-1.0, 1.0, -2.0))
    run = Run(host, samples=65, base=64, policy=policy, min_batch_size=8)
    inner = schedules.StepLR(run.inner, 100)
    schedule = run.controller.schedule(inner)
    run.train(epochs=10, after=lambda *_: schedule.step())
    assert inner.last_epoch == 20
    assert len(set(map(len, run.steps))) > 2


def schedules_left_as_they_were(host: Host) -> None:
    def stepped(schedule: Any, words: str, after: Any, epochs: int = 1) -> None:
        run = Run(host, policy=GROW)
        scheduler = schedule(run.inner)
        with pytest.warns(RuntimeWarning, match=words):
            run.train(epochs=epochs, after=lambda _, epoch: after(scheduler, epoch))

    stepped(
        lambda o: schedules.StepLR(o, 5),
        r"controller\.schedule\(scheduler\)",
        lambda scheduler, _: scheduler.step(),
    )
    stepped(
        lambda o: schedules.ExponentialLR(o, 0.9),
        "has moved within an epoch",
        lambda scheduler, epoch: scheduler.step() if epoch == 1 else None,
        epochs=2,
    )
    stepped(
        schedules.ReduceLROnPlateau,
        "its patience counts batches",
        lambda scheduler, _: scheduler.step(1.0),
    )
    run = Run(host, policy=GROW)
    taken = run.controller.schedule(schedules.CosineAnnealingWarmRestarts(run.inner, 2))
    with host.refuses(ConfigurationError, match=r"step\(\) without an argument"):
        run.train(after=lambda *_: taken.step(0.5))


def a_chained_schedule(host: Host) -> None:
    def make(optimizer: Any) -> Any:
        parts = schedules.ConstantLR(optimizer, 0.1, 3), schedules.ExponentialLR(optimizer, 0.95)
        return schedules.ChainedScheduler(list(parts))

    run = Run(host, policy=GROW, micro_batch_size=3)
    schedule = run.controller.schedule(make(run.inner))
    with silence():
        run.train(after=lambda *_: schedule.step())
    assert schedule.get_last_lr() == [pytest.approx(0.01 * 0.95**10)]
    run = Run(host, policy=GROW)
    left = make(run.inner)
    with pytest.warns(RuntimeWarning, match=r"controller\.schedule\(scheduler\)"):
        run.train(after=lambda *_: left.step())


def a_schedule_resumed_within_an_epoch(host: Host) -> None:
    """At a rate that the schedule computes from the one before, which the optimizer saves."""

    def make() -> tuple[Run, Any]:
        run = Run(host, policy=ScriptedPolicy((1.0, -0.5) * 20))
        return run, run.controller.schedule(schedules.ExponentialLR(run.inner, 0.9))

    whole, schedule = make()
    whole.train(epochs=2, after=lambda *_: schedule.step())
    first, schedule = make()
    first.train(after=lambda *_: schedule.step(), until=3)
    saved = schedule.state_dict(), first.controller.state_dict()
    rate = first.inner.param_groups[0]["lr"]
    second, again = make()
    second.inner.param_groups[0]["lr"] = rate
    again.load_state_dict(saved[0])
    second.controller.load_state_dict(saved[1])
    second.train(epochs=2, after=lambda *_: again.step())
    assert first.rates + second.rates == whole.rates
    assert first.steps + second.steps == whole.steps


class Scaled:
    """A run with a GradScaler, in whose steps 0, 3, 9 and 11 gradients overflow."""

    BAD = (0, 3, 9, 11)

    def __init__(self, host: Host, lags: bool, **settings: Any) -> None:
        """The loop steps the schedule always, or (`lags`) where the optimizer has stepped."""
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        self.run = Run(host, make=adam, scaler=self.scaler, **settings)
        self.inner, self.lags = schedules.LinearLR(self.run.inner, 1.0, 0.1, 20), lags
        self.schedule = self.run.controller.schedule(self.inner)
        self.bad, self.scales = list[int](), list[float]()

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[1])
        # On one rank: its gradient reaches the others.
        if self.run.controller.steps in self.BAD and self.run.host.last:
            out.register_hook(lambda gradient: gradient * math.inf)
        return nn.functional.cross_entropy(out.mean(1), batch[2])

    def _behind(self, *_: Any) -> None:
        self._scale = self.scaler.get_scale()

    def _after(self, *_: Any) -> None:
        now = self.scaler.get_scale()
        if now < self._scale:
            self.bad.append(len(self.run.steps) - 1)
        if now >= self._scale or not self.lags:
            self.schedule.step()
        self.scales.append(now)

    def train(self, **settings: Any) -> Scaled:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of", UserWarning)  # torch's, of plain
            # And of Accelerate alone, which puts its own step in place of the optimizer's.
            warnings.filterwarnings("ignore", "Seems like", UserWarning)
            self.run.train(self._loss, behind=self._behind, after=self._after, **settings)
        return self

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("scaler", "schedule")}
        rate = self.run.inner.param_groups[0]["lr"]
        return {**parts, "controller": self.run.controller.state_dict(), "rate": rate}

    def load(self, state: dict[str, Any]) -> None:
        self.run.inner.param_groups[0]["lr"] = state["rate"]
        for name in ("scaler", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.run.controller.load_state_dict(state["controller"])


def plain_scaled(lags: bool) -> tuple[list[float], list[float], Tensor]:
    """Return rates, scales and weights of the plain loop."""
    model, data, rates, scales = network(), Rows(76), list[float](), list[float]()
    optimizer = adam(model)
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    schedule: Any = schedules.LinearLR(optimizer, 1.0, 0.1, 20)
    rows = [list(range(at, min(at + BASE, 76))) for at in range(0, 76, BASE)] * 2
    for step, chosen in enumerate(rows):
        loss = plain_mean(model, data.batch(chosen))
        if step in Scaled.BAD:
            loss.register_hook(lambda gradient: gradient * math.inf)
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        if not lags or scales[-1] >= before:
            schedule.step()
    return rates, scales, flat(list(model.parameters()))


def steps_that_a_scaler_leaves_out(host: Host) -> None:
    """For gradients that overflow: rates, scales and weights are the plain loop's, resumed, too."""
    for lags in (False, True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of", UserWarning)
            rates, scales, weights = plain_scaled(lags)
        whole = Scaled(host, lags).train(epochs=2)
        assert (whole.run.rates, whole.scales) == (rates, scales)
        assert error(whole.run.weights, weights) < 1e-12
        for stop in (4, 5):  # right behind an overflow, and one step later
            first = Scaled(host, lags).train(until=stop)
            second = Scaled(host, lags)
            second.load(first.state())
            second.train(epochs=2)
            assert first.run.rates + second.run.rates == rates
            assert first.scales + second.scales == scales
        grown = Scaled(host, lags, **OFTEN).train(epochs=2)
        assert grown.bad == [0, 3, 9, 11][: len(grown.bad)]
        assert sorted(row for step in grown.run.steps for row in step) == sorted([*range(76)] * 2)
        ends = [sum(map(len, grown.run.steps[: n + 1])) for n in range(len(grown.run.steps))]
        made = [10 * (end // 76) + end % 76 // BASE for end in ends]
        left = sum(made[n] - (made[n - 1] if n else 0) for n in grown.bad)
        assert left > len(grown.bad) > 2
        assert grown.inner.last_epoch == 20 - (left if lags else 0)
    assert whole.run.controller.components["rollbacks"] == 0


def a_schedule_that_begins_late(host: Host) -> None:
    """Behind the first of three epochs."""
    for policy in ("fixed", GROW):
        run = Run(host, policy=policy)
        inner = schedules.LinearLR(run.inner, 1.0, 0.1, 20)
        schedule = run.controller.schedule(inner)
        run.train(after=lambda _, epoch, s=schedule: s.step() if epoch else None, epochs=3)
        assert inner.last_epoch == 20
        if policy == "fixed":
            assert run.rates[:11] == [0.01] * 11


# -- roll-backs --


def a_roll_back(host: Host) -> None:
    """Steps 8 to 11 have no finite loss: back to the start, and what is frozen is not copied."""
    model = network()
    first: Any = next(iter(model.children()))
    first.requires_grad_(False)
    queue = torch.zeros(3)
    run = Run(host, model, adam, policy=ScriptedPolicy((0.0, 1.0)), samples=200,
              first_chunk_steps=4)  # fmt: skip
    run.controller.on_rollback(queue.clone, queue.copy_)
    states: list[Tensor] = []

    def state() -> Tensor:
        held = [v for row in run.inner.state.values() for v in row.values()]
        return torch.cat([run.weights, *(host.whole(torch.as_tensor(v)) for v in held)])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        states.append(torch.cat([state(), queue]))
        spoilt = 8 <= run.controller.steps < 12
        return plain_mean(model, batch) * (torch.nan if spoilt else 1.0)

    def push(run: Run, _: int) -> None:
        if run.controller.steps != 12:
            queue.copy_(queue.roll(1))[0] = run.controller.steps

    with host.warns_once("These steps are undone"):
        run.train(loss, after=push, until=13)
    assert torch.equal(states[8], states[12])
    assert not torch.equal(states[7], states[8])
    copied = run.controller.state_dict()["control_loop"]["guard"]
    shapes = [tuple(t.shape) for _, _, _, t in _tensors_of(copied)]
    assert shapes
    assert tuple(host.own(first.weight).shape) not in shapes


def _tensors_of(saved: Any) -> list[Any]:
    if isinstance(saved, dict):
        found = saved.get("tensors")
        return found if found else [t for value in saved.values() for t in _tensors_of(value)]
    return []


def a_model_converted_within_the_run(host: Host) -> None:
    """Torch's own loop trains each rank alone from there on (DDP), or raises (FSDP2)."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        kind = next(model.parameters()).dtype
        return plain_mean(model, [batch[0], batch[1].to(kind), batch[2]])

    # It rises in every epoch: before a rise there is always a copy.
    rising = {**OFTEN, "policy": ScriptedPolicy((1.0, -1.0) * 20)}
    run = Run(host, **rising).train(loss)
    run.model.to(torch.float64)
    run.train(loss)  # nothing was converted
    run.model.float()
    if host.world_size == 1:
        run.train(loss)
        copied = run.controller._run.adapter._parts.weights.state_dict()["tensors"]
        kinds = {tensor.dtype for kind, _, _, tensor in copied if kind == "parameter"}
        assert kinds == {torch.float32}
    elif getattr(host, "kind", "") == "ddp":
        with host.refuses(ConfigurationError, "were torch.float64 on cpu .* are torch.float32"):
            run.train(loss)
    else:
        with pytest.raises(RuntimeError, match="dtype float, but got double"):
            run.train(loss)


def a_term_that_is_phased_in(host: Host) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        term = ramp(run.controller.steps)
        return plain_mean(model, batch) + term * (1.0 + 0.01 * model(batch[1]).square().mean())

    run = Run(host, samples=160, base=16, policy=ScriptedPolicy((0.3, -0.3) * 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.train(loss, epochs=12)
    assert run.controller.components["rollbacks"] == 0
    assert run.controller.components["enabled"]


def an_explosion(host: Host) -> None:
    run = Run(host, samples=160, base=16, policy=ScriptedPolicy((0.0,) * 4 + (3.0,)),
              lr_coupling="linear")  # fmt: skip

    def explode(run: Run, _: int) -> None:
        for group in run.inner.param_groups:
            group["lr"] = 0.01 if run.controller.batch_size == 16 else 30.0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[1]).square().sum(-1) - 1.0).square().mean()

    def trained() -> None:
        # The explosion is made by a rate that is set by hand, which is told of, too.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "rlbatch: the learning rate has", RuntimeWarning)
            run.train(loss, epochs=6, before=explode)

    with host.warns_once("after the batch size had changed"):
        trained()
    assert run.controller.components["rollbacks"] >= 1


# -- batches --


def a_batch_left_out(host: Host) -> None:
    """Compared with a plain loop over the samples of all processes."""
    run = Run(host, micro_batch_size=3)
    number = 0
    for batch in run.loader:
        if run.controller.delivered.position == 0:
            number += 1
        if number == 3 and run.controller.delivered.position == 0:
            run.controller.skip()
            continue
        run.controller.backward(plain_mean(run.model, batch))
        run.controller.step()
    model = network()
    optimizer = sgd(model)
    order = list(range(76))
    for step in range(10):
        rows = order[step * BASE : (step + 1) * BASE]
        if step != 2:
            plain_mean(model, run.data.batch(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert error(run.weights, flat(list(model.parameters()))) < 1e-12
    assert run.controller.steps == 9


def samples_of_odd_numbers(host: Host) -> None:
    for samples in (5, 35, 1 + host.world_size):
        run = Run(host, samples=samples, base=16, policy=GROW).train(epochs=2)
        order = [row for step in run.steps for row in step]
        assert sorted(order) == sorted(list(range(samples)) * 2)


class Growing(Rows):
    """More samples each time that the loop asks for them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(max(sizes))
        self.sizes, self.epoch = sizes, 0

    def __len__(self) -> int:
        return self.sizes[self.epoch]


def a_dataset_that_grows(host: Host) -> None:
    """Of 58 samples in steps of 19 none is left alone, and each epoch has its own plain steps."""
    if host.world_size > 1:
        return  # a DistributedSampler counts once
    for drop_last, steps in ((False, 5 + 8), (True, 5 + 7))[: 1 if host.takes_all else 2]:
        data = Growing(40, 58)
        run = Run(host, policy=ScriptedPolicy((math.log2(19 / 8),)))
        run.controller.close()
        controller = host.control(
            run.model, run.optimizer, batch_size=BASE, cost="samples", lr_coupling="none",
            policy=ScriptedPolicy((math.log2(19 / 8),)),
        )  # fmt: skip
        run.loader = controller.loader(DataLoader(data, BASE, drop_last=drop_last))
        run.controller, inner = controller, schedules.StepLR(run.inner, 100)
        schedule = controller.schedule(inner)
        run.train(after=lambda *_, schedule=schedule: schedule.step())
        data.epoch = 1
        run.train(after=lambda *_, schedule=schedule: schedule.step())
        schedule.step()  # behind the epoch: of what was dropped
        assert min(map(len, run.steps)) > 1
        assert inner.last_epoch == steps


def statistics_in_parts(host: Host) -> None:
    def model() -> nn.Module:
        first, *others = network().children()
        norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(42), nn.Unflatten(1, (7, 6)))
        return nn.Sequential(norm.double(), first, *others)

    with pytest.warns(RuntimeWarning, match="batch normalisation then goes over 3 samples"):
        Run(host, model(), micro_batch_size=3)
    with silence():
        Run(host, model(), micro_batch_size=BASE, policy=GROW).train(plain_mean)
        Run(host, micro_batch_size=3)
        frozen = model()
        layers: Any = frozen
        layers[0][1].eval()
        Run(host, frozen, micro_batch_size=3)


# -- runs that are only measured --


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)).double()
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(6, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        twice: Any = checkpoint(lambda y: self.first(self.first(y).tanh()), x, use_reentrant=False)
        return self.last(self.drop(twice))


def a_measured_run(host: Host) -> None:
    """Spectral norm, a layer used twice, within a checkpoint, and dropout."""
    ends: list[Tensor] = []
    for policy in ("fixed", Measuring((0.0,) * 50)):
        torch.manual_seed(5)
        run = Run(host, Tied(), policy=policy, noise_rate=5.0)
        with silence():
            ends.append(run.train(plain_mean, epochs=2).weights)
    assert torch.equal(*ends)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.LazyLinear(9), nn.Tanh(), nn.Linear(9, 5)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def lazy_layers(host: Host) -> None:
    """DistributedDataParallel and fully_shard themselves refuse those without a size."""
    ends: list[Tensor] = []
    for policy in ("fixed", Measuring((0.0,) * 50)):
        model = Lazy()
        if host.world_size > 1:
            with pytest.raises(RuntimeError, match="uninitialized"):
                Run(host, Lazy())
            model(Rows().x[:2])
        ends.append(Run(host, model, policy=policy, noise_rate=5.0).train().weights)
    assert torch.equal(*ends)


# -- what is refused --


def optimizers_that_cannot_be_steered(host: Host) -> None:
    class Sharp(torch.optim.SGD):
        def first_step(self) -> None: ...

    def rateless(model: Any) -> Any:
        optimizer = sgd(model)
        del optimizer.param_groups[0]["lr"]
        return optimizer

    makes: dict[str, Callable[[Any], Any]] = {
        "holds no parameter": lambda _: sgd(network()),
        "needs a closure": lambda m: torch.optim.LBFGS(m.parameters()),
        "first_step": lambda m: Sharp(m.parameters(), lr=0.1),
        "explicit learning rate": rateless,
    }
    for words, make in makes.items():
        with host.refuses(ConfigurationError, match=words):
            Run(host, make=make)


def steps_beside_the_controllers(host: Host) -> None:
    with host.refuses(DeliveryError, match="beside"):
        Run(host).train(behind=lambda run, _: run.inner.step())
    run = Run(host)
    second = sgd(run.model)
    with host.refuses(ConfigurationError, match="second optimizer"):
        run.train(behind=lambda *_: second.step())
    stranger = sgd(network())
    Run(host).train(behind=lambda *_: stranger.step())
    with host.refuses(DeliveryError, match="between two parts"):
        Run(host, micro_batch_size=2).train(before=lambda *_: stranger.step())


def steps_within_the_backward_pass(host: Host) -> None:
    run = Run(host)
    second = sgd(run.model)
    for parameter in run.model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: second.step())
    with host.refuses(ConfigurationError, match="within the backward pass"):
        run.train()


def two_controllers(host: Host) -> None:
    one = Run(host)
    other = host.control(one.model, one.optimizer, batch_size=BASE, policy="fixed")
    loader = other.loader(host.source(one.data, BASE))
    held = iter(one.loader)
    batch = next(held)
    one.controller.backward(plain_mean(one.model, batch))
    taken = iter(loader)
    next(taken)
    with host.refuses(ConfigurationError, match="Another controller has begun"):
        one.controller.step()


def groups_side_by_side(host: Host) -> None:
    with host.refuses(ConfigurationError, match="side by side"):
        Run(host, sampler=Ordered(76, m_per_class=4))


def states_that_are_refused(host: Host) -> None:
    policy = ScriptedPolicy((1.0, 0.6, -2.0, 1.5))
    saved = Run(host, policy=policy).train().controller.state_dict()
    fresh = Run(host, policy=policy)
    before = str(fresh.controller.state_dict())
    for damaged in ({**saved, "control_loop": {}}, {**saved, "loader": None}, {}, None):
        with host.refuses(ConfigurationError):
            fresh.controller.load_state_dict(damaged)
    assert str(fresh.controller.state_dict()) == before
    assert fresh.train().steps == Run(host, policy=policy).train().steps


SITUATIONS: tuple[Situation, ...] = (
    parts_that_do_not_add_up,
    a_sum_that_grows,
    a_loss_that_cannot_be_divided,
    zeroing_between_parts,
    clipping_between_parts,
    clipping_whole_batches,
    gradients_left_over,
    averages_between_parts,
    a_failed_backward_pass,
    a_schedule_by_steps,
    sixty_five_samples,
    schedules_left_as_they_were,
    a_chained_schedule,
    a_schedule_resumed_within_an_epoch,
    steps_that_a_scaler_leaves_out,
    a_schedule_that_begins_late,
    a_roll_back,
    a_model_converted_within_the_run,
    a_term_that_is_phased_in,
    an_explosion,
    a_batch_left_out,
    samples_of_odd_numbers,
    a_dataset_that_grows,
    statistics_in_parts,
    a_measured_run,
    lazy_layers,
    optimizers_that_cannot_be_steered,
    steps_beside_the_controllers,
    steps_within_the_backward_pass,
    two_controllers,
    groups_side_by_side,
    states_that_are_refused,
)


def failures(host: Host, situations: tuple[Situation, ...] = SITUATIONS) -> dict[str, str]:
    """Run all of them and return what went wrong in which."""
    found: dict[str, str] = {}
    for situation in situations:
        try:
            situation(host)
        except BaseException:  # also what pytest raises where a warning did not come
            found[situation.__name__] = traceback.format_exc(limit=-4)
    return found
