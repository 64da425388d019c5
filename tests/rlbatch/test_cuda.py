"""Training under the controller on a GPU, against plain loops there and against the CPU."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.agents.gpu.memory_runs import Hungry, most_memory
from rlbatch.control.snapshot import Snapshot
from rlbatch.controller import BatchController
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy
from tests.helpers import perceptron

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
SAMPLES, BASE = 90, 8
SCALE = 2.0**124  # float32 ends at 2**128: some steps overflow
CHANGES = (1.0, 1.0, -0.5, 0.7, -2.0, 1.5, 0.3, -1.0)


class Measuring(ScriptedPolicy):
    """Has the gradient noise measured."""

    needs_gradient_noise = True


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@dataclass(frozen=True)
class Feature:
    """One way to train."""

    optimizer: Callable[[nn.Module], Optimizer] = lambda model: AdamW(model.parameters(), lr=3e-3)
    scaled: bool = False
    autocast: torch.dtype | None = None
    workers: int = 0


FEATURES = {
    "AdamW": Feature(),
    "fused AdamW": Feature(lambda model: AdamW(model.parameters(), lr=3e-3, fused=True)),
    "capturable AdamW": Feature(lambda model: AdamW(model.parameters(), lr=3e-3, capturable=True)),
    "SGD": Feature(lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9)),
    "bfloat16": Feature(autocast=torch.bfloat16),
    "float16, scaled": Feature(autocast=torch.float16, scaled=True),
    "float32, scaled": Feature(scaled=True),
    "pinned memory, a worker": Feature(workers=1),
}


class Training:
    """A small network on the GPU, with dropout, and its loop."""

    def __init__(self, feature: Feature, dropout: float = 0.2) -> None:
        torch.manual_seed(5)
        self.feature = feature
        self.model = perceptron(dropout).to(GPU)
        self.optimizer = feature.optimizer(self.model)
        self.scaler: Any = None
        if feature.scaled:
            scale = SCALE if feature.autocast is None else 2.0**16
            self.scaler = torch.amp.GradScaler("cuda", init_scale=scale, growth_interval=4)
        self.loader: DataLoader[Any] = DataLoader(
            data(),
            batch_size=BASE,
            shuffle=True,
            num_workers=feature.workers,
            pin_memory=feature.workers > 0,
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.to(GPU, non_blocking=True), y.to(GPU, non_blocking=True)
        kind = self.feature.autocast
        with torch.autocast("cuda", kind or torch.bfloat16, enabled=kind is not None):
            output = self.model(x)
        return nn.functional.mse_loss(output.float(), y) * 16

    def plain(self, epochs: int) -> Tensor:
        for _ in range(epochs):
            for x, y in self.loader:
                loss = self.loss(x, y)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                if self.scaler is None:
                    self.optimizer.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                self.optimizer.zero_grad()
        return weights_of(self.model)

    def controller(self, policy: Any, **settings: Any) -> tuple[BatchController, Any]:
        controller = BatchController(
            self.model,
            self.optimizer,
            batch_size=BASE,
            policy=policy,
            scaler=self.scaler,
            on_error="raise",
            **settings,
        )
        return controller, controller.loader(self.loader)

    def controlled(self, epochs: int, policy: Any, **settings: Any) -> Tensor:
        controller, loader = self.controller(policy, **settings)
        for _ in range(epochs):
            for x, y in loader:
                controller.backward(self.loss(x, y))
                controller.step()
        controller.close()
        return weights_of(self.model)


@pytest.mark.parametrize("name", FEATURES)
def test_fixed_is_the_plain_loop_bit_for_bit(name: str) -> None:
    expected = Training(FEATURES[name]).plain(3)
    assert torch.isfinite(expected).all()
    assert torch.equal(Training(FEATURES[name]).controlled(3, "fixed"), expected)


@pytest.mark.parametrize("name", FEATURES)
def test_measuring_in_every_step_is_the_plain_loop_bit_for_bit(name: str, tmp_path: Path) -> None:
    expected = Training(FEATURES[name]).plain(3)
    settings = {"noise_rate": float("inf"), "log_dir": tmp_path / "log", "shadow": True}
    found = Training(FEATURES[name]).controlled(3, Measuring(CHANGES), **settings)
    assert torch.equal(found, expected)
    signals: list[Any] = [record.signals for record in read_episode(tmp_path / "log").records]
    known = [s["noise_trace"] for s in signals if s and s["noise_trace"] is not None]
    assert any(math.isfinite(trace) and trace > 0 for trace in known)


@pytest.mark.parametrize("parts", [3, 5, 16])
def test_the_gradient_of_parts_is_that_of_all_samples(parts: int) -> None:
    torch.manual_seed(0)
    model = perceptron(0.0).double().to(GPU)
    x, y = (tensor.double() for tensor in data().tensors)
    controller = BatchController(
        model,
        SGD(model.parameters(), lr=0.0),
        batch_size=16,
        policy="fixed",
        micro_batch_size=parts,
    )
    loader = controller.loader(DataLoader(TensorDataset(x, y), batch_size=16))
    reference = perceptron(0.0).double()  # on the CPU
    reference.load_state_dict(model.state_dict())
    steps, seen = 0, 0
    for part_x, part_y in loader:
        loss = nn.functional.mse_loss(model(part_x.to(GPU)), part_y.to(GPU))
        controller.backward(loss)
        if controller.batch_complete:
            end = min(seen + 16, SAMPLES)
            whole = nn.functional.mse_loss(reference(x[seen:end]), y[seen:end])
            expected = torch.autograd.grad(whole, list(reference.parameters()))
            for parameter, gradient in zip(model.parameters(), expected, strict=True):
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-10, atol=1e-14)
            steps, seen = steps + 1, end
        controller.step()
    assert (steps, seen) == (6, SAMPLES)


@pytest.mark.parametrize("name", ["AdamW", "fused AdamW", "capturable AdamW", "SGD"])
def test_a_copy_is_put_back(name: str) -> None:
    def work(training: Training, seed: int) -> None:
        torch.manual_seed(seed)
        training.plain(1)

    training, undisturbed = Training(FEATURES[name]), Training(FEATURES[name])
    for each in (training, undisturbed):
        work(each, 1)
    copy = Snapshot(training.model, training.optimizer)
    copy.begin()
    copy.take()
    work(training, 2)
    copy.take()  # over the first one, in the same memory
    copy.restore()
    work(undisturbed, 2)
    assert torch.equal(weights_of(training.model), weights_of(undisturbed.model))
    work(training, 3)
    copy.restore()
    work(training, 4)
    work(undisturbed, 4)
    assert torch.equal(weights_of(training.model), weights_of(undisturbed.model))


def test_damage_is_rolled_back() -> None:
    training = Training(FEATURES["AdamW"])
    controller, loader = training.controller(ScriptedPolicy((0.0, 1.0)), first_chunk_steps=4)
    before: list[Tensor] = []

    def train() -> None:
        for _ in range(4):
            for x, y in loader:
                before.append(weights_of(training.model))
                loss = training.loss(x, y)
                grown = controller.batch_size > BASE
                controller.backward(loss * math.nan if grown else loss)
                controller.step()

    with pytest.warns(RuntimeWarning, match=r"was not finite.*These steps"):
        train()
    assert controller.components["rollbacks"] == 1
    damaged = next(i for i, weights in enumerate(before) if not torch.isfinite(weights).all())
    healed = next(i for i in range(damaged, len(before)) if bool(torch.isfinite(before[i]).all()))
    assert torch.equal(before[healed], before[damaged - 1])
    assert torch.isfinite(weights_of(training.model)).all()


@pytest.mark.parametrize("place", [None, "cpu", "cuda"])
@pytest.mark.parametrize("name", ["AdamW", "fused AdamW", "float16, scaled"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str, place: str | None) -> None:
    policy, stop_after = Measuring(CHANGES), 13
    settings: dict[str, Any] = {"cost": "samples", "noise_rate": float("inf")}
    whole = Training(FEATURES[name]).controlled(4, policy, **settings)

    first = Training(FEATURES[name])
    controller, loader = first.controller(policy, **settings)
    for _ in range(4):
        for x, y in loader:
            controller.backward(first.loss(x, y))
            controller.step()
            if controller.steps == stop_after:
                break
        if controller.steps == stop_after:
            break
    saved = io.BytesIO()
    state = {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}
    if first.scaler is not None:
        state["scaler"] = first.scaler.state_dict()
    torch.save({**state, "controller": controller.state_dict()}, saved)
    controller.close()

    saved.seek(0)
    state = torch.load(saved, weights_only=True, map_location=place)
    second = Training(FEATURES[name])
    torch.manual_seed(99)
    controller, loader = second.controller(policy, **settings)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    if second.scaler is not None:
        second.scaler.load_state_dict(state["scaler"])
    controller.load_state_dict(state["controller"])
    for _ in range(4 - controller.components["epoch"]):
        for x, y in loader:
            controller.backward(second.loss(x, y))
            controller.step()
    controller.close()
    assert torch.equal(weights_of(second.model), whole)


def test_the_time_of_a_chunk_is_that_of_the_device(tmp_path: Path) -> None:
    training = Training(FEATURES["SGD"])
    settings = {"first_chunk_steps": 4, "min_chunk_steps": 4, "max_chunk_steps": 4}
    controller, loader = training.controller(
        ScriptedPolicy(()), log_dir=tmp_path / "log", **settings
    )
    events: list[tuple[Any, Any]] = []
    for x, y in loader:
        pair: Any = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
        pair[0].record()
        torch.cuda._sleep(20_000_000)  # cycles, for which the host does not wait
        pair[1].record()
        events.append(pair)
        controller.backward(training.loss(x, y))
        controller.step()
    controller.close()
    torch.cuda.synchronize()
    busy = [first.elapsed_time(last) / 1e3 for first, last in events]
    records = [r for r in read_episode(tmp_path / "log").records if r.signals]
    assert len(records) >= 2
    began = 0
    for record in records:
        spent: Any = record.signals["chunk_cost"]
        assert spent >= 0.99 * sum(busy[began : record.step]) > 0.0
        began = record.step


def test_a_pass_that_is_out_of_memory_comes_again_in_parts() -> None:
    numbers, samples = 1 << 18, 256
    policy = ScriptedPolicy((1.0, 1.0, 1.0))
    settings: dict[str, Any] = {"guard": None, "lr_coupling": "none", "cost": "samples"}

    def run(limited: bool) -> tuple[Tensor, list[int], list[str]]:
        model = Hungry(numbers).to(GPU)
        torch.manual_seed(0)
        inputs = TensorDataset(torch.rand(samples, 1))
        controller = BatchController(
            model,
            SGD(model.parameters(), lr=0.1),
            batch_size=BASE,
            policy=policy,
            micro_batch_size="auto" if limited else None,
            on_error="raise",
            **settings,
        )
        sizes: list[int] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for (x,) in controller.loader(DataLoader(inputs, BASE, shuffle=True)):
                with controller.within_memory():
                    controller.backward(model(x.to(GPU)).square().mean())
                if taken := controller.step():
                    sizes.append(taken)
        controller.close()
        said = [str(w.message) for w in caught if "out of memory" in str(w.message)]
        return weights_of(model).cpu(), sizes, said

    expected, plain_sizes, _ = run(limited=False)
    with most_memory(GPU, 700 << 20):  # a sample takes some 25 MiB
        found, sizes, said = run(limited=True)
    assert said
    assert sizes == plain_sizes
    assert max(sizes) == 8 * BASE
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_decisions_are_those_of_the_cpu(tmp_path: Path) -> None:
    sizes: dict[str, list[int]] = {}
    for device in (torch.device("cpu"), GPU):
        torch.manual_seed(3)
        model = perceptron(0.0).double().to(device)
        controller = BatchController(
            model,
            AdamW(model.parameters(), lr=3e-3),
            batch_size=BASE,
            policy="noise-scale",
            cost="samples",
            log_dir=tmp_path / device.type,
        )
        x, y = (tensor.double() for tensor in data().tensors)
        loader = controller.loader(DataLoader(TensorDataset(x, y), BASE, shuffle=True))
        for _ in range(6):
            for inputs, targets in loader:
                loss = nn.functional.mse_loss(model(inputs.to(device)), targets.to(device))
                controller.backward(loss)
                controller.step()
        controller.close()
        records = read_episode(tmp_path / device.type).records
        sizes[device.type] = [record.batch_size for record in records]
    assert len(set(sizes["cpu"])) > 1
    assert sizes["cpu"] == sizes["cuda"]


@pytest.mark.slow
def test_a_compiled_model_learns_as_the_plain_one() -> None:
    found: list[Tensor] = []
    sizes: list[list[int]] = []
    for compiled in (False, True):
        torch.compiler.reset()
        torch.manual_seed(5)
        model = perceptron(0.0).to(GPU)
        call: Any = torch.compile(model) if compiled else model
        optimizer = SGD(model.parameters(), lr=0.02)
        controller = BatchController(
            call, optimizer, batch_size=BASE, policy=ScriptedPolicy((1.0, 1.0)), cost="samples"
        )
        sizes.append([])
        for x, y in controller.loader(DataLoader(data(), BASE)):
            controller.backward(nn.functional.mse_loss(call(x.to(GPU)), y.to(GPU)))
            sizes[-1].append(controller.step())
        controller.close()
        found.append(weights_of(model))
    torch.compiler.reset()
    assert np.unique(sizes[0]).size > 2
    assert sizes[0] == sizes[1]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
