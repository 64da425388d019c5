"""Models and loops of unusual kinds: the run is the plain one, or it is said why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import rlbatch
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.testing import ScriptedPolicy

SAMPLES, BASE, EPOCHS = 50, 8, 2
Body = Callable[[int, int, int], None]


class Measuring(ScriptedPolicy):
    """Asks for the gradient noise."""

    needs_gradient_noise = True


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 6, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (SAMPLES,), generator=generator))


def network(first: Any = nn.Linear) -> nn.Module:
    return nn.Sequential(first(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def state(model: nn.Module) -> Tensor:
    tensors = [*model.parameters(), *model.buffers()]
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])


class Run:
    """A training, with rlbatch or alone."""

    def __init__(
        self, make: Callable[[], nn.Module] = network, policy: Any = None, **settings: Any
    ) -> None:
        torch.manual_seed(1)
        self.model = make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.loader: Any = DataLoader(rows(), BASE, shuffle=True)
        self.controller: Any = None
        if policy is not None:
            told = {"cost": "samples", "lr_coupling": "none", "noise_rate": 5.0, **settings}
            self.controller = rlbatch.BatchController(
                self.model, self.optimizer, batch_size=BASE, policy=policy, **told
            )
            self.loader = self.controller.loader(self.loader)

    def train(self, loss: Any = entropy, body: Body | None = None, epochs: int = EPOCHS) -> Run:
        for epoch in range(epochs):
            for number, batch in enumerate(self.loader):
                value = loss(self.model, batch)
                if self.controller is None:
                    self.optimizer.zero_grad()
                    value.backward()
                    self.optimizer.step()
                    samples = len(batch[0])
                else:
                    self.controller.backward(value)
                    samples = self.controller.step()
                if body is not None:
                    body(epoch, number, samples)
        return self


def spectral_convolution() -> nn.Module:
    head = spectral_norm(nn.Linear(16, 3))
    convolution = spectral_norm(nn.Conv1d(1, 4, 3))
    return nn.Sequential(nn.Unflatten(1, (1, 6)), convolution, nn.Tanh(), nn.Flatten(), head)


def with_penalty(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    out = model(x)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return functional.cross_entropy(out, batch[1]) + gradient.square().mean()


def with_jacobian(model: nn.Module, batch: Any) -> Tensor:
    jacobian = torch.func.vmap(torch.func.jacrev(model), randomness="same")(batch[0])
    return entropy(model, batch) + jacobian.square().mean()


def with_a_file(model: nn.Module, batch: Any) -> Tensor:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied = torch.load(file, weights_only=False).eval()
    return entropy(model, batch) + 0.0 * copied(batch[0]).mean()


KINDS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "spectral norm": (lambda: network(lambda a, b: spectral_norm(nn.Linear(a, b))), entropy),
    "spectral norm of convolutions": (spectral_convolution, entropy),
    "weight norm": (lambda: network(lambda a, b: weight_norm(nn.Linear(a, b))), entropy),
    "a lazy layer": (lambda: network(lambda _, b: nn.LazyLinear(b)), entropy),
    "a penalty on gradients": (network, with_penalty),
    "a jacobian by torch.func": (network, with_jacobian),
    "a model saved within the step": (network, with_a_file),
    "a loss of one element": (network, lambda m, b: entropy(m, b).reshape(1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_run_is_the_plain_one(kind: str) -> None:
    make, loss = KINDS[kind]
    plain, ours = Run(make).train(loss), Run(make, Measuring((0.0,) * 50))
    ours.train(loss)
    assert torch.equal(state(ours.model), state(plain.model))
    assert ours.controller._run.adapter._loop.progress.noise_seen


def test_a_model_copied_in_a_measured_step_keeps_no_hook_that_sees_anything() -> None:
    copies: list[Any] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        file = io.BytesIO()
        torch.save(model, file)
        copies.append(file.getvalue())
        return entropy(model, batch)

    Run(policy=Measuring((0.0,) * 50)).train(loss, epochs=1)
    assert len(set(map(len, copies))) > 1  # some hold hooks
    assert all(b"rlbatch" not in copied for copied in copies)


# -- schedules --


def rates_of(schedule: Any, *, when: Callable[[int], bool] = lambda _: True) -> Any:
    run = Run(policy=ScriptedPolicy((1.0,)))
    scheduler = schedule(run.optimizer)
    run.train(body=lambda epoch, *_: scheduler.step() if when(epoch) else None, epochs=3)


def test_a_schedule_that_begins_late_is_warned_about() -> None:
    with pytest.warns(RuntimeWarning, match="ExponentialLR.*has moved within an epoch"):
        rates_of(lambda o: schedules.ExponentialLR(o, 0.9), when=lambda epoch: epoch == 1)


def test_a_rate_that_is_set_late_by_hand_is_warned_about() -> None:
    run, steps = Run(policy=ScriptedPolicy((1.0,))), iter(range(1000))

    def body(*_: int) -> None:
        run.optimizer.param_groups[0]["lr"] = 0.05 * 0.9 ** max(next(steps) - 4, 0)

    with pytest.warns(RuntimeWarning, match=r"controller\.plain_steps"):
        run.train(body=body)


def test_steps_of_the_plain_loop_can_be_asked_for() -> None:
    run, seen = Run(policy=ScriptedPolicy((1.0,))), list[int]()
    run.train(body=lambda *_: seen.append(run.controller.plain_steps))
    assert seen[-1] == EPOCHS * -(-SAMPLES // BASE)
    assert len(seen) < seen[-1]


def test_a_schedule_by_a_metric_that_is_stepped_at_every_batch_is_warned_about() -> None:
    run = Run(policy=ScriptedPolicy((1.0,)))
    scheduler = schedules.ReduceLROnPlateau(run.optimizer)
    with pytest.warns(RuntimeWarning, match="its patience counts batches"):
        run.train(body=lambda *_: scheduler.step(1.0))


@pytest.mark.filterwarnings("error")
def test_schedules_by_epochs_validations_and_places_are_not() -> None:
    run = Run(policy=ScriptedPolicy((1.0,)))
    plateau = schedules.ReduceLROnPlateau(run.optimizer, patience=0)
    by_epochs = schedules.ExponentialLR(run.optimizer, 0.9)
    for _ in range(4):
        run.train(body=lambda _, n, __: plateau.step(1.0) if n == 2 else None, epochs=1)
        by_epochs.step()

    run = Run(policy=ScriptedPolicy((1.0,)))
    restarts: Any = schedules.CosineAnnealingWarmRestarts(run.optimizer, 2)

    def by_place(epoch: int, *_: int) -> None:
        restarts.step(epoch + run.loader.sampler.position / SAMPLES)

    run.train(body=by_place, epochs=3)


def test_a_place_told_to_a_schedule_that_counts_is_refused() -> None:
    run = Run(policy=ScriptedPolicy((1.0,)))
    scheduler = schedules.CosineAnnealingWarmRestarts(run.optimizer, 2)
    place: Any = scheduler.step  # its annotation knows whole epochs only
    with pytest.warns(RuntimeWarning, match="WarmRestarts.*has moved within an epoch"):
        run.train(body=lambda epoch, number, _: place(epoch + number / 7))
    run = Run(policy=ScriptedPolicy((1.0,)))
    taken = run.controller.schedule(schedules.CosineAnnealingWarmRestarts(run.optimizer, 2))
    with pytest.raises(ConfigurationError, match=r"step\(\) without an argument"):
        run.train(body=lambda epoch, number, _: taken.step(epoch + number / 7))


def test_a_schedule_that_is_told_the_steps_is_not_taken() -> None:
    class Told:
        def step_update(self, num_updates: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"step_update\(controller\.plain_steps\)"):
        Run(policy="fixed").controller.schedule(Told())


def test_a_cycle_ends_at_the_plain_loops_rate() -> None:
    ends: list[float] = []
    for policy in (None, "fixed", ScriptedPolicy((1.0,))):
        run, steps = Run(policy=policy), EPOCHS * -(-SAMPLES // BASE)
        scheduler: Any = schedules.OneCycleLR(run.optimizer, 0.1, total_steps=steps + 1)
        scheduler = scheduler if policy is None else run.controller.schedule(scheduler)
        run.train(body=lambda *_, s=scheduler: s.step())
        ends.append(run.optimizer.param_groups[0]["lr"])
    assert ends[0] == ends[1] == ends[2]


# -- averages, failed passes, other kinds of numbers --


def test_an_average_that_is_updated_between_parts_is_refused() -> None:
    run = Run(policy=ScriptedPolicy((2.0,)), micro_batch_size=BASE)
    average = AveragedModel(run.model)
    with pytest.raises(DeliveryError, match="AveragedModel was updated"):
        run.train(body=lambda *_: average.update_parameters(run.model))

    run = Run(policy=ScriptedPolicy((2.0,)), micro_batch_size=BASE)
    average = AveragedModel(run.model)
    steps: list[int] = []

    def once_a_step(_: int, __: int, samples: int) -> None:
        if samples:
            steps.append(samples)
            average.update_parameters(run.model)

    run.train(body=once_a_step)
    assert max(steps) == 4 * BASE
    assert int(average.n_averaged) == len(steps)


def test_a_failed_backward_pass_is_no_step() -> None:
    run = Run(policy="fixed")
    before = state(run.model)
    for number, batch in enumerate(run.loader):
        if number == 1:
            with pytest.raises(RuntimeError, match="does not require grad"):
                run.controller.backward(entropy(run.model, batch).detach())
            with pytest.raises(DeliveryError, match="backward pass of this batch has failed"):
                run.controller.step()
            with pytest.raises(DeliveryError, match=r"controller\.skip\(\)"):
                run.controller.backward(entropy(run.model, batch))
            run.controller.skip()
            assert torch.equal(state(run.model), before)
            continue
        run.controller.backward(entropy(run.model, batch))
        run.controller.step()
        before = state(run.model)
    assert run.controller.steps == -(-SAMPLES // BASE) - 1


def test_an_optimizer_of_two_passes_is_refused() -> None:
    class Sharp(torch.optim.SGD):
        def first_step(self) -> None: ...

    model = network()
    with pytest.raises(ConfigurationError, match="first_step"):
        rlbatch.BatchController(model, Sharp(model.parameters(), lr=0.1), batch_size=BASE)


def test_a_model_converted_in_the_run_is_copied_as_it_is() -> None:
    chunks = {f"{name}_chunk_steps": 1 for name in ("first", "min", "max")}
    run = Run(network, ScriptedPolicy((1.0, -1.0) * 20), **chunks)

    def loss(model: Any, batch: Any) -> Tensor:
        return entropy(model, (batch[0].to(model[0].weight.dtype), batch[1]))

    run.train(loss, epochs=1)
    cast("Any", run.model).double()
    run.train(loss, epochs=1)
    copied = run.controller._run.adapter._parts.weights.state_dict()["tensors"]
    kinds = {tensor.dtype for kind, _, _, tensor in copied if kind == "parameter"}
    assert kinds == {torch.float64}


def test_no_word_is_said_of_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Run(policy=ScriptedPolicy((1.0, -0.5))).train(epochs=3)
