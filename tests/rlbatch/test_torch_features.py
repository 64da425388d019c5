"""What training loops use of torch, with the controller and without it: the same weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.controller import BatchController
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy

SAMPLES, BASE, MICRO = 90, 8, 12
SCALE = 2.0**124  # float32 ends at 2**128: some steps overflow
CHANGES = (1.0, 1.0, -0.5, 0.7, -2.0, 1.5, 0.3, -1.0)


class Measuring(ScriptedPolicy):
    """Has the gradient noise measured."""

    needs_gradient_noise = True


class Tied(nn.Module):
    """Two uses of one weight, and a layer that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.inner.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.frozen(torch.tanh(self.inner(x)))))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(trained(model), lr=3e-3)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(trained(model), lr=0.02, momentum=0.9)


def two_groups(model: nn.Module) -> Optimizer:
    first, *others = trained(model)
    groups = [{"params": [first], "lr": 0.01, "weight_decay": 0.1}, {"params": others}]
    return AdamW(groups, lr=0.002, weight_decay=0.0)


@dataclass(frozen=True)
class Feature:
    """One way to train.

    Attributes:
        model: Makes the model.
        optimizer: Makes its optimizer.
        clip: Norm to which the gradient is clipped.
        scaled: With a GradScaler, whose factor grows and shrinks on the way.
        autocast: The forward pass in bfloat16.
        compiled: With torch.compile, without a code generator behind it.
    """

    model: Callable[[], nn.Module] = dense
    optimizer: Callable[[nn.Module], Optimizer] = adamw
    clip: float | None = None
    scaled: bool = False
    autocast: bool = False
    compiled: bool = False


FEATURES = {
    "plain": Feature(),
    "clipped": Feature(clip=0.05, optimizer=sgd),
    "scaled": Feature(scaled=True),
    "scaled and clipped": Feature(scaled=True, clip=0.05, optimizer=sgd),
    "autocast": Feature(autocast=True),
    "autocast, scaled and clipped": Feature(autocast=True, scaled=True, clip=0.05),
    "compiled": Feature(compiled=True),
    "fused AdamW": Feature(optimizer=lambda model: AdamW(trained(model), lr=3e-3, fused=True)),
    "fused SGD": Feature(
        optimizer=lambda model: SGD(trained(model), lr=0.02, momentum=0.9, fused=True)
    ),
    "foreach Adam": Feature(
        optimizer=lambda model: Adam(trained(model), lr=3e-3, foreach=True, amsgrad=True)
    ),
    "fused, rate in a tensor": Feature(
        optimizer=lambda model: AdamW(trained(model), lr=torch.tensor(3e-3), fused=True)
    ),
    "two groups": Feature(optimizer=two_groups),
    "tied and frozen": Feature(model=Tied, optimizer=sgd),
    "batch norm": Feature(model=normalised, optimizer=sgd),
    "everything": Feature(normalised, two_groups, 0.05, scaled=True, autocast=True, compiled=True),
}
every_feature = pytest.mark.parametrize("name", FEATURES)


class Training:
    """A model with all that belongs to a feature."""

    def __init__(self, feature: Feature) -> None:
        torch.manual_seed(5)
        self.feature = feature
        self.model = feature.model()
        self.call: Callable[[Tensor], Tensor] = self.model
        if feature.compiled:
            torch.compiler.reset()
            self.call = torch.compile(self.model, backend="eager")
        self.optimizer = feature.optimizer(self.model)
        self.scaler: Any = None
        if feature.scaled:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=4)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.feature.autocast else nullcontext():
            loss = nn.functional.mse_loss(self.call(x).float(), y)
        return loss * 16 if self.feature.scaled else loss

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> None:
        clip = self.feature.clip
        if self.scaler is None:
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
        else:
            if clip is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    @property
    def state(self) -> list[Tensor]:
        scale = [] if self.scaler is None else [torch.tensor(self.scaler.get_scale())]
        values = [tensor.detach().clone() for tensor in self.model.state_dict().values()]
        return [*values, *scale]


Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """What a controlled run did in one optimizer step."""

    parts: list[Part]
    rate_factor: float

    @property
    def samples(self) -> int:
        return sum(len(x) for x, _ in self.parts)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def controlled(
    feature: Feature, policy: Any, epochs: int, **settings: Any
) -> tuple[Training, list[Step]]:
    training = Training(feature)
    controller = BatchController(
        training.model,
        training.optimizer,
        batch_size=BASE,
        policy=policy,
        scaler=training.scaler,
        guard=None,
        on_error="raise",
        **settings,
    )
    steps: list[Step] = []
    parts: list[Part] = []
    loader = controller.loader(DataLoader(data(), batch_size=BASE, shuffle=True))
    for _ in range(epochs):
        for x, y in loader:
            parts.append((x, y))
            controller.backward(training.loss(x, y))
            factor: float = controller.components["learning_rate_factor"]
            if controller.step(clip_norm=feature.clip):
                steps.append(Step(parts, factor))
                parts = []
    controller.close()
    return training, steps


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@functools.cache
def plain_states(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return a feature's state before and after three epochs of the plain loop."""
    plain = Training(FEATURES[name])
    start = plain.state
    for _ in range(3):
        for x, y in DataLoader(data(), batch_size=BASE, shuffle=True):
            plain.backward(plain.loss(x, y))
            plain.step()
    return start, plain.state


@pytest.fixture(autouse=True)
def _no_compiled_code_is_left() -> Iterator[None]:
    yield
    torch.compiler.reset()


@every_feature
def test_the_fixed_policy_is_the_plain_loop_bit_for_bit(name: str) -> None:
    start, end = plain_states(name)
    assert any(not torch.equal(a, b) for a, b in zip(start, end, strict=True))
    assert_same(controlled(FEATURES[name], "fixed", 3)[0].state, end)


@every_feature
def test_measuring_in_every_step_is_the_plain_loop_bit_for_bit(name: str) -> None:
    run, steps = controlled(FEATURES[name], Measuring(()), 3, noise_rate=math.inf)
    assert all(len(step.parts) == 1 for step in steps)
    assert_same(run.state, plain_states(name)[1])


@every_feature
def test_changing_sizes_are_an_accumulating_loop_bit_for_bit(name: str) -> None:
    feature = FEATURES[name]
    run, steps = controlled(
        feature, Measuring(CHANGES), 8, micro_batch_size=MICRO, lr_coupling="sqrt", noise_rate=1.5
    )
    sizes = {step.samples for step in steps}
    assert len(sizes) > 5
    assert max(sizes) > 2 * MICRO  # accumulated
    assert all(len(step.parts) == -(-step.samples // MICRO) for step in steps)  # what fits is whole
    assert max(len(x) for step in steps for x, _ in step.parts) <= MICRO

    plain = Training(feature)
    for step in steps:
        for x, y in step.parts:
            loss = plain.loss(x, y)
            plain.backward(loss * (len(x) / step.samples) if len(step.parts) > 1 else loss)
        groups = plain.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * step.rate_factor
        plain.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
    assert_same(run.state, plain.state)
    followed = sum(step.rate_factor == math.sqrt(step.samples / BASE) for step in steps)
    assert followed >= len(steps) - 8  # at an epoch's end fewer samples arrive than were decided


@every_feature
def test_gradient_noise_is_measured(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    controlled(FEATURES[name], Measuring(()), 4, noise_rate=2.0, min_chunk_steps=4, log_dir=log)
    records = [r for r in read_episode(log).records if r.event == "decision"]
    noise = [float(r.signals["noise_trace"]) for r in records if r.signals is not None]  # pyright: ignore[reportArgumentType]
    known = sum(math.isfinite(value) and value > 0 for value in noise)
    if FEATURES[name].compiled:
        assert known == 0  # hooks within compiled modules are not run
    else:
        assert known >= len(noise) // 3  # some scaled steps overflow


def test_steps_whose_scaled_gradient_overflows_are_skipped() -> None:
    """The tests above are about such steps too."""
    made = 0

    def counted(model: nn.Module) -> Optimizer:
        optimizer = adamw(model)

        def count(*_: Any) -> None:
            nonlocal made
            made += 1

        optimizer.register_step_post_hook(count)
        return optimizer

    _, steps = controlled(Feature(optimizer=counted, scaled=True), "fixed", 3)
    assert len(steps) // 2 < made < len(steps)


def test_rates_of_groups_keep_their_ratio_and_come_back() -> None:
    seen: list[tuple[float, float]] = []

    def watched(model: nn.Module) -> Optimizer:
        optimizer = two_groups(model)

        def look(*_: Any) -> None:
            first, second = optimizer.param_groups
            seen.append((first["lr"], second["lr"]))

        optimizer.register_step_pre_hook(look)
        return optimizer

    run, steps = controlled(Feature(optimizer=watched), ScriptedPolicy((2.0,)), 3)
    factors = [step.rate_factor for step in steps]
    assert set(factors) == {1.0, 2.0}
    assert seen == [(0.01 * factor, 0.002 * factor) for factor in factors]
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.01, 0.002]


def test_what_is_frozen_stays_and_what_is_tied_stays_together() -> None:
    before = Training(FEATURES["tied and frozen"]).model
    run, _ = controlled(FEATURES["tied and frozen"], Measuring(CHANGES), 4)
    after = run.model
    assert isinstance(before, Tied)
    assert isinstance(after, Tied)
    assert torch.equal(after.frozen.weight, before.frozen.weight)
    assert after.frozen.weight.grad is None
    assert after.again.weight is after.inner.weight
    assert not torch.equal(after.inner.weight, before.inner.weight)


def test_batch_statistics_are_those_of_the_parts() -> None:
    run, steps = controlled(FEATURES["batch norm"], Measuring(CHANGES), 4, micro_batch_size=MICRO)
    layer = run.model.get_submodule("1")
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.num_batches_tracked == sum(len(step.parts) for step in steps)


@pytest.mark.parametrize(("marked", "most"), [(False, 2), (True, 1)])
def test_changing_sizes_are_compiled_once_or_twice(marked: bool, most: int) -> None:
    """Twice: at the first size, and at the second one for all that follow."""
    graphs = 0

    def backend(graph: Any, _inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    changes = (*CHANGES, 0.6, 0.8, -0.4, 1.1)
    torch.manual_seed(5)
    torch.compiler.reset()
    model = dense()
    call = torch.compile(model, backend=backend)
    controller = BatchController(
        model, adamw(model), batch_size=BASE, policy=Measuring(changes), min_batch_size=BASE
    )
    loader = controller.loader(DataLoader(data(), batch_size=BASE, shuffle=True, drop_last=True))
    sizes: set[int] = set()
    for _ in range(12):
        for x, y in loader:
            sizes.add(len(x))
            if marked:
                torch._dynamo.mark_dynamic(x, 0)
            controller.backward(nn.functional.mse_loss(call(x), y))
            controller.step()
    assert len(sizes) > 8  # more than torch compiles anew before it gives up
    assert graphs == most
