"""The monitor against gradients that plain autograd computes for each micro-batch by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode

from rlbatch.errors import ConfigurationError
from rlbatch.signals import noise_scale
from rlbatch.signals.metric import is_adaptive, momentum_of
from rlbatch.signals.monitor import (
    ChunkMeasurement,
    ChunkMonitor,
)
from tests.helpers import optimizer_step, tanh_network

Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return tanh_network(5, 7, 3, seed=1)


def batch(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator), torch.randint(3, (size,), generator=generator)


def loss_of(model: nn.Module, data: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: Iterable[list[int]],
    monitor: ChunkMonitor | None,
    scaler: Any = None,
) -> None:
    """A plain accumulation loop; step w uses `batch(sum(sizes), seed=w)`."""
    for seed, sizes in enumerate(steps):
        x, y = batch(sum(sizes), seed)
        if monitor is not None:
            monitor.begin_step(sizes, measured=True)
        for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
            loss = loss_of(model, (xs, ys))
            weighted = loss * (len(ys) / sum(sizes))
            (weighted if scaler is None else scaler.scale(weighted)).backward()
            if monitor is not None:
                monitor.after_backward(loss)
        optimizer_step(optimizer, scaler)


def flat_gradient(model: nn.Module, data: Batch) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss_of(model, data), parameters)
    return torch.cat([part.reshape(-1) for part in parts]).double()


def expected(
    model: nn.Module, sizes: list[int], seed: int, weight: Tensor | float = 1.0
) -> tuple[float, float, float]:
    """Reference |G|^2, tr(Sigma) and half-batch cosine of one step."""
    x, y = batch(sum(sizes), seed)
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    root = torch.as_tensor(weight, dtype=torch.float64).sqrt()
    own = [flat_gradient(model, part) * root for part in parts]
    small = sum(float(g @ g) * size for g, size in zip(own, sizes, strict=True)) / sum(sizes)
    micro = sum(sizes) / len(sizes)
    whole = flat_gradient(model, (x, y)) * root
    grad_sqr, trace = noise_scale.estimate(small, float(whole @ whole), micro, sum(sizes))
    first, covered = torch.zeros_like(whole), 0
    for g, size in zip(own, sizes, strict=True):
        if covered < sum(sizes) / 2 and covered + size < sum(sizes):
            first += g * size / sum(sizes)
            covered += size
    cosine = torch.nn.functional.cosine_similarity(first, whole - first, dim=0)
    return float(grad_sqr), float(trace), float(cosine)


def assert_measures(result: ChunkMeasurement, reference: tuple[float, float, float]) -> None:
    measured = (result.grad_sqr, result.noise_trace, result.gradient_cosine)
    assert measured == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize("sizes", [[8, 8], [4, 4, 4, 4], [6, 3, 1], [1, 9], [2, 2, 2]])
def test_plain_metric_equals_separate_gradients(sizes: list[int]) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    reference = expected(model, sizes, seed=0)
    monitor = ChunkMonitor(model.parameters(), optimizer)
    train(model, optimizer, [sizes], monitor)
    assert_measures(monitor.finish(), reference)


def second_moment_weight(optimizer: Optimizer, model: nn.Module) -> Tensor:
    """1 / (sqrt(vhat) + eps), element by element, written out from the papers' formulas."""
    weights: list[Tensor] = []
    for p in model.parameters():
        state, group = optimizer.state[p], optimizer.param_groups[0]
        if isinstance(optimizer, Adamax):
            root = state["exp_inf"]
        elif isinstance(optimizer, RMSprop):
            root = state["square_avg"].sqrt()
        else:
            moment = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
            root = (moment / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
        weights.append((1 / (root.double() + group["eps"])).reshape(-1))
    return torch.cat(weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Adam(p, lr=0.01),
        lambda p: Adam(p, lr=0.01, amsgrad=True),
        lambda p: AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3),
        lambda p: AdamW(p, lr=0.01, foreach=True),
        lambda p: AdamW(p, lr=0.01, fused=True),
        lambda p: NAdam(p, lr=0.01),
        lambda p: RAdam(p, lr=0.01),
        lambda p: Adamax(p, lr=0.01),
        lambda p: RMSprop(p, lr=0.01),
    ],
)
def test_adaptive_metric_uses_the_second_moment_before_the_step(
    make: Callable[[Any], Optimizer],
) -> None:
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, [[8, 8]] * 4, None)
    reference = expected(model, [5, 8], 0, second_moment_weight(optimizer, model))
    monitor = ChunkMonitor(model.parameters(), optimizer)
    train(model, optimizer, [[5, 8]], monitor)
    assert_measures(monitor.finish(), reference)


def test_adaptive_steps_without_enough_state_are_skipped() -> None:
    model = network()
    optimizer = AdamW(model.parameters())
    monitor = ChunkMonitor(model.parameters(), optimizer)
    train(model, optimizer, [[4, 4]] * 2, monitor)
    assert monitor.finish().measurements == 0
    train(model, optimizer, [[4, 4]] * 2, monitor)
    assert monitor.finish().measurements == 2


def test_elements_that_never_had_a_gradient_do_not_drown_the_rest() -> None:
    embedding = nn.Embedding(10, 4)
    optimizer = Adam(embedding.parameters())
    for _ in range(3):
        embedding(torch.tensor([1, 2])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor = ChunkMonitor(embedding.parameters(), optimizer)
    monitor.begin_step([2, 2], measured=True)
    for index in ([1, 7], [2, 8]):
        loss = embedding(torch.tensor(index)).square().mean()
        (loss / 2).backward()
        monitor.after_backward(loss)
    # a gradient of row 7 or 8 weighed by 1 / eps = 1e8 would make this about 1e5
    assert monitor.finish().noise_trace < 10


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: AdamW(p, lr=0.01)])
def test_watching_changes_nothing(make: Callable[[Any], Optimizer]) -> None:
    weights: list[list[Tensor]] = []
    for watched in (False, True):
        model = network()
        optimizer = make(model.parameters())
        monitor = ChunkMonitor(model.parameters(), optimizer) if watched else None
        train(model, optimizer, [[4, 4], [3, 5], [8]] * 3, monitor)
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Shared(nn.Module):
    """A layer used twice under two names, a frozen one, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = self.first
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.head = nn.Linear(5, 3)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.again(self.first(x).tanh())))


def test_shared_frozen_and_unused_parameters() -> None:
    model = Shared()
    optimizer = SGD(model.parameters(), lr=0.1)
    # The list names the shared layer twice, as a hand-made list may.
    monitor = ChunkMonitor([*model.parameters(), *model.again.parameters()], optimizer)
    x, y = batch(8, 0)

    def gradient(part: slice) -> Tensor:
        wanted = [*model.first.parameters(), *model.head.parameters()]
        parts = torch.autograd.grad(loss_of(model, (x[part], y[part])), wanted)
        return torch.cat([g.reshape(-1) for g in parts])

    own = [gradient(slice(0, 4)), gradient(slice(4, 8))]
    whole = gradient(slice(0, 8))
    small = sum(float(g @ g) for g in own) / 2
    grad_sqr, trace = noise_scale.estimate(small, float(whole @ whole), 4, 8)
    train(model, optimizer, [[4, 4]], monitor)
    result = monitor.finish()
    assert result.grad_sqr == pytest.approx(float(grad_sqr), rel=1e-4)
    assert result.noise_trace == pytest.approx(float(trace), rel=1e-4)


def test_a_branch_used_only_by_a_later_micro_batch_counts() -> None:
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    monitor = ChunkMonitor([a, b], SGD([a, b], lr=0.1))
    monitor.begin_step([1, 1], measured=True)
    for loss in ((2 * a).sum(), (4 * b).sum()):
        (loss / 2).backward()
        monitor.after_backward(loss)
    result = monitor.finish()  # gradients (2, 0) and (0, 4); mean (1, 2)
    assert result.grad_sqr == pytest.approx(2 * 5 - 10)
    assert result.gradient_cosine == pytest.approx(0.0)


def test_sparse_gradients_are_measured() -> None:
    sizes: list[float] = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(10, 4, sparse=sparse)
        monitor = ChunkMonitor(embedding.parameters(), SGD(embedding.parameters(), lr=0.1))
        monitor.begin_step([2, 2], measured=True)
        for index in ([1, 7], [1, 8]):
            loss = embedding(torch.tensor(index)).square().mean()
            (loss / 2).backward()
            monitor.after_backward(loss)
        sizes.append(monitor.finish().noise_trace)
    assert sizes[0] == pytest.approx(sizes[1])


def test_the_scale_of_mixed_precision_is_divided_out() -> None:
    results: list[ChunkMeasurement] = []
    for scaled in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        scaler = (
            torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) if scaled else None
        )
        monitor = ChunkMonitor(model.parameters(), optimizer, scaler=scaler)
        train(model, optimizer, [[4, 4]] * 6, monitor, scaler)
        results.append(monitor.finish())
    plain, scaled = results
    assert scaled.grad_sqr == pytest.approx(plain.grad_sqr, rel=1e-4)
    assert scaled.noise_trace == pytest.approx(plain.noise_trace, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = network()
    reference = expected(model, [8, 8], seed=0)
    model.to(dtype)
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1))
    x, y = batch(16, 0)
    monitor.begin_step([8, 8], measured=True)
    for half in (slice(0, 8), slice(8, 16)):
        loss = loss_of(model, (x[half].to(dtype), y[half]))
        (loss / 2).backward()
        monitor.after_backward(loss)
    assert monitor.finish().noise_trace == pytest.approx(reference[1], rel=0.05)


def test_steps_that_are_not_finite_are_counted_and_left_out() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    monitor = ChunkMonitor([weight], SGD([weight], lr=0.1))

    def step(first: float, second: float, gradient: float = 1.0) -> None:
        monitor.begin_step([1, 1], measured=True)
        for value in (first, second):
            weight.grad = torch.full_like(weight, value * gradient)
            monitor.after_backward(torch.tensor(value))

    step(1.0, 3.0)
    step(1.0, math.nan, gradient=0.0)
    step(2.0, 2.0, gradient=math.inf)
    result = monitor.finish()
    assert (result.nonfinite_losses, result.nonfinite_steps) == (1, 2)
    assert result.measurements == 1
    assert result.train_loss == pytest.approx(2.0)
    step(math.nan, math.nan)
    empty = monitor.finish()
    assert math.isnan(empty.train_loss)
    assert math.isnan(empty.gradient_cosine)
    assert empty.measurements == 0


def test_losses_are_weighted_by_samples() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    monitor = ChunkMonitor([weight], SGD([weight], lr=0.1))
    losses = [[(3, 1.0), (1, 5.0)], [(2, 4.0)]]
    for step in losses:
        monitor.begin_step([size for size, _ in step], measured=False)
        for _, value in step:
            monitor.after_backward(torch.tensor(value))
    result = monitor.finish()
    assert result.steps == 2
    assert result.train_loss == pytest.approx(3.0)
    assert result.train_loss_std == pytest.approx(np.std([2.0, 4.0], ddof=1))
    assert result.measurements == 0


def test_a_loss_that_the_loop_goes_on_computing_with_is_left_out() -> None:
    weight = nn.Parameter(torch.ones(1))
    monitor = ChunkMonitor([weight], SGD([weight], lr=0.1))
    average: Tensor | None = None
    for value in (1.0, 2.0, 4.0):
        monitor.begin_step([1], measured=False)
        loss = (weight * value).sum()
        loss.backward()
        monitor.after_backward(loss)
        if average is None:
            average = loss.detach()
        else:
            average.mul_(0.5).add_(loss.detach(), alpha=0.5)  # in place: over the first loss
    result = monitor.finish()
    assert (result.steps, result.train_loss) == (3, 3.0)
    assert (result.nonfinite_losses, result.nonfinite_steps) == (0, 0)


def test_an_undivided_batch_says_nothing_about_noise() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = ChunkMonitor(model.parameters(), optimizer)
    train(model, optimizer, [[8]] * 2, monitor)
    result = monitor.finish()
    assert result.measurements == 0
    assert math.isnan(result.grad_sqr)


class _NoRead(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_device_read() -> Iterator[None]:
    with _NoRead():
        yield


def test_the_device_is_read_only_at_the_end() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = ChunkMonitor(model.parameters(), optimizer)
    with pytest.raises(AssertionError, match="waits"), no_device_read():
        float(torch.ones(()))
    with no_device_read():
        train(model, optimizer, [[4, 4]] * 3, monitor)
    assert monitor.finish().measurements == 3


def test_chunks_are_independent() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.0)
    monitor = ChunkMonitor(model.parameters(), optimizer)
    train(model, optimizer, [[4, 4]], monitor)
    first = monitor.finish()
    train(model, optimizer, [[4, 4]], monitor)
    assert monitor.finish() == first
    monitor.begin_step([4, 4], measured=True)
    monitor.discard()
    assert monitor.finish().steps == 0


def test_a_chunk_continues_from_its_state() -> None:
    results: list[ChunkMeasurement] = []
    for interrupted in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        monitor = ChunkMonitor(model.parameters(), optimizer)
        train(model, optimizer, [[4, 4]] * 2, monitor)
        if interrupted:
            state = json.loads(json.dumps(monitor.state_dict()))
            monitor = ChunkMonitor(model.parameters(), optimizer)
            monitor.begin_step([1, 1], measured=True)  # dropped, as the state knows nothing of it
            monitor.load_state_dict(state)
        monitor.begin_step([4, 4], measured=True)
        monitor.drop_step()
        train(model, optimizer, [[3, 4]], monitor)
        results.append(monitor.finish())
    assert results[0].steps == 3
    assert results[0] == results[1]


def test_a_step_that_the_optimizer_did_not_make_is_forgotten() -> None:
    results: list[ChunkMeasurement] = []
    states: list[dict[str, Any]] = []
    for left_early in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        monitor = ChunkMonitor(model.parameters(), optimizer)
        train(model, optimizer, [[4, 4]] * 2, monitor)
        if left_early:
            monitor.begin_step([4, 4], measured=True)
            for _ in range(2):
                loss = model(torch.ones(4, 5)).square().mean()
                (loss / 2).backward()
                monitor.after_backward(loss)
        states.append(monitor.state_dict(2))
        monitor.drop_step(2)
        optimizer.zero_grad()
        train(model, optimizer, [[3, 4]], monitor)
        results.append(monitor.finish())
    assert states[0] == states[1]
    assert len(states[0]["losses"]) == len(states[0]["sizes"]) == 2
    assert results[0].steps == 3
    assert results[0] == results[1]


def test_misuse_is_refused() -> None:
    model = network()
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match="without begin_step"):
        monitor.after_backward(torch.tensor(1.0))
    with pytest.raises(ConfigurationError, match="at least 1 sample"):
        monitor.begin_step([], measured=False)
    monitor.begin_step([1, 1], measured=False)
    with pytest.raises(ConfigurationError, match="2 micro-batches and 0 came"):
        monitor.finish()


def test_optimizer_kinds() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    assert not is_adaptive(SGD(parameters, lr=0.1))
    assert is_adaptive(AdamW(parameters))
    assert is_adaptive(RMSprop(parameters))
    assert momentum_of(SGD(parameters, lr=0.1, momentum=0.7)) == 0.7
    assert momentum_of(Adam(parameters, betas=(0.8, 0.9))) == 0.8
