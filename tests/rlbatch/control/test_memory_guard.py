"""Runs that run out of memory, against runs that had small enough micro-batches from the start."""

from __future__ import annotations

import gc
import io
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rlbatch
import rlbatch.controller
from rlbatch.control import memory_passes
from rlbatch.control.memory import HostGauge
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.log.episode_reader import read_episode
from rlbatch.testing import ScriptedPolicy
from tests.rlbatch.control.rank_runs import Measuring, leave, meet, spawn

ROWS, BASE, WIDTH = 75, 8, 32
GROW = ScriptedPolicy((1.0, 0.0, 1.0, 0.5, -2.0, 2.0))
pytestmark = pytest.mark.filterwarnings("ignore:rlbatch. out of memory:RuntimeWarning")


class Rows(Dataset[tuple[int, Tensor, Tensor]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
        self.y = self.x.sin().sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.x[index], self.y[index]


class Failing(nn.Module):
    """Says that memory is used up in chosen passes, after part of the work is done."""

    def __init__(self, fails_in: tuple[int, ...] = (), dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(1)
        parts = (nn.Linear(5, WIDTH), nn.Tanh(), nn.Dropout(dropout), nn.Linear(WIDTH, 1))
        self.net = nn.Sequential(*parts).double()
        self.fails_in, self.passes = fails_in, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        y = self.net(x)
        if self.passes in self.fails_in:
            raise torch.OutOfMemoryError("out of memory, says the test")
        return y


class Run:
    """A small training whose passes stand within `within_memory`."""

    def __init__(
        self,
        policy: Any = "fixed",
        model: Failing | None = None,
        workers: int = 0,
        persistent: bool = False,
        **settings: Any,
    ) -> None:
        self.model = model or Failing()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        torch.manual_seed(5)
        settings = {"first_chunk_steps": 4, "cost": "samples", "lr_coupling": "none", **settings}
        self.controller = rlbatch.BatchController(
            self.model, self.optimizer, batch_size=BASE, policy=policy, **settings
        )
        data = DataLoader(
            Rows(), BASE, shuffle=True, num_workers=workers, persistent_workers=persistent
        )
        self.loader = self.controller.loader(data)
        self.batches: list[list[list[int]]] = [[]]  # samples of the steps' passes

    def train(self, epochs: int, stop_after: int | None = None) -> Run:
        for _ in range(epochs):
            for index, x, y in self.loader:
                with self.controller.within_memory():
                    loss = nn.functional.mse_loss(self.model(x), y)
                    self.controller.backward(loss)
                    self.batches[-1].append(index.tolist())
                if self.controller.step():
                    self.batches.append([])
                elif self.controller.components["next_step"] and self._begins_anew:
                    self.batches[-1] = []
                if stop_after is not None and len(self.batches) > stop_after:
                    return self
        return self

    @property
    def _begins_anew(self) -> bool:
        accumulator: Any = self.controller._run.accumulator
        return not accumulator.parts.is_open

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    @property
    def samples(self) -> list[list[int]]:
        return [[i for part in batch for i in part] for batch in self.batches if batch]

    @property
    def largest(self) -> list[int]:
        return [max(map(len, batch)) for batch in self.batches if batch]


class Holding(nn.Module):
    """Fails in its second pass, with what it has made so far in its hands."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.held: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        made = x * self.weight
        self.held.append(weakref.ref(made))
        if len(self.held) == 2:
            raise torch.OutOfMemoryError("out of memory, says the test")
        return made.sum(1)


def test_what_a_failed_pass_held_is_free_before_the_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Holding()
    at_release: list[bool] = []

    class Gauge(HostGauge):
        @contextmanager
        def watch(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - as a GPU's
            yield

        def release(self) -> None:
            at_release.append(model.held[-1]() is None)

    monkeypatch.setattr(memory_passes, "make_gauge", lambda device, limit: Gauge())
    controller = rlbatch.BatchController(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=8,
        policy="fixed",
        micro_batch_size="auto",
    )
    data = DataLoader(TensorDataset(torch.rand(24, 1)), 8)
    gc.collect()
    gc.disable()
    try:
        for (x,) in controller.loader(data):
            with controller.within_memory():
                controller.backward(model(x).square().mean())
            controller.step()
    finally:
        gc.enable()
    controller.close()
    assert at_release == [True]
    assert [held() for held in model.held] == [None] * len(model.held)


def needed(samples: int, dropout: float = 0.3) -> int:
    """The bytes that a pass of so many samples saves, as the gauge counts them."""
    model = Failing(dropout=dropout)
    run = Run(model=model, micro_batch_size="auto", memory_limit=10**9)
    gauge: Any = run.controller._run.passes._guard._gauge
    x, y = Rows().x[:samples].clone(), Rows().y[:samples].clone()
    with gauge.watch():
        nn.functional.mse_loss(run.model(x), y).backward()
    return gauge.needed()


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_run_that_does_not_fit_becomes_the_one_of_half_the_size(
    workers: int, persistent: bool
) -> None:
    limit = needed(BASE) - 1  # the user's own batch does not fit, half of it does
    options: dict[str, Any] = {"workers": workers, "persistent": persistent}
    small = Run(micro_batch_size=BASE // 2, **options).train(3)
    with pytest.warns(RuntimeWarning, match="out of memory with micro-batches of 8; .* with 4"):
        found = Run(micro_batch_size="auto", memory_limit=limit, **options).train(3)
    assert found.batches == small.batches
    assert torch.equal(found.weights, small.weights)


@pytest.mark.parametrize("fails_in", [(3,), (1, 2), (5, 9, 30), (12, 13, 14)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failure_at_any_pass_loses_and_repeats_nothing(
    tmp_path: Path, fails_in: tuple[int, ...], workers: int
) -> None:
    whole = Run(GROW, Failing(dropout=0.0)).train(4)
    log = tmp_path / "log"
    found = Run(
        GROW, Failing(fails_in, dropout=0.0), workers, log_dir=log, micro_batch_size=16
    ).train(4)
    found.controller.close()
    if not workers:  # with workers a change takes effect later
        assert found.samples == whole.samples
        torch.testing.assert_close(found.weights, whole.weights)
    visited = [i for batch in found.samples for i in batch]
    assert sorted(visited) == sorted(4 * list(range(ROWS)))
    records = read_episode(log).records
    noted = [record for record in records if record.event == "out_of_memory"]
    assert len(noted) == len(fails_in)
    assert all("going on with" in record.reasons[0] for record in noted)
    assert [record.index for record in records] == list(range(len(records)))


def test_the_limit_follows_the_memory() -> None:
    fits = 20
    run = Run(GROW, Failing(dropout=0.0), micro_batch_size="auto", memory_limit=needed(fits, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it never runs out
        run.train(8)
    assert max(map(len, run.samples)) >= 2 * BASE
    assert BASE < max(run.largest) <= fits
    plain = Run(GROW, Failing(dropout=0.0)).train(8)
    assert run.samples == plain.samples
    torch.testing.assert_close(run.weights, plain.weights)


def test_finding_out_changes_nothing_of_the_run() -> None:
    """With memory enough for everything, random state and weights are those of no limit."""
    free = Run(GROW, micro_batch_size="auto", memory_limit=10**9).train(4)
    assert max(free.largest) > BASE
    plain = Run(GROW).train(4)
    if free.batches == plain.batches:
        assert torch.equal(free.weights, plain.weights)
    assert free.samples == plain.samples
    fixed, without = Run(micro_batch_size="auto", memory_limit=10**9).train(4), Run().train(4)
    assert fixed.batches == without.batches
    assert torch.equal(fixed.weights, without.weights)


@pytest.mark.parametrize("stop_after", [3, 7, 11])
def test_a_resumed_run_keeps_what_was_found_out(stop_after: int) -> None:
    settings: dict[str, Any] = {"micro_batch_size": "auto", "memory_limit": needed(20)}
    whole = Run(GROW, **settings).train(4)
    first = Run(GROW, **settings).train(4, stop_after=stop_after)
    file = io.BytesIO()
    parts = first.model.state_dict(), first.optimizer.state_dict(), first.controller.state_dict()
    torch.save(parts, file)
    file.seek(0)
    again = Run(GROW, **settings)
    model, optimizer, controller = torch.load(file, weights_only=True)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.controller.load_state_dict(controller)
    again.train(4 - first.loader.sampler.epoch)
    batches = [batch for batch in first.batches if batch][:stop_after]
    assert batches + [w for w in again.batches if w] == [w for w in whole.batches if w]
    assert torch.equal(again.weights, whole.weights)


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Run(micro_batch_size="auto", memory_limit=needed(1) - 1).train(1)


def test_other_errors_go_through() -> None:
    run = Run()
    for _ in run.loader:
        with pytest.raises(ZeroDivisionError), run.controller.within_memory():
            raise ZeroDivisionError
        break


def test_wrong_use_is_said() -> None:
    run = Run(micro_batch_size="auto", memory_limit=10**9)
    with pytest.raises(DeliveryError, match="one batch"), run.controller.within_memory():
        pass
    for _, x, y in run.loader:
        with pytest.raises(DeliveryError, match="within_memory"):
            run.controller.backward(nn.functional.mse_loss(run.model(x), y))
        break
    with pytest.raises(ConfigurationError, match="a number of samples that fits"):
        _ = run.controller.config.limits.known_micro_batch_size  # as frameworks ask
    with pytest.raises(ConfigurationError, match="'all'"):
        Run(micro_batch_size="all")
    with pytest.raises(ConfigurationError, match="memory_limit"):
        Run(memory_limit=0)


# -- several ranks --


def train(rank: int, world_size: int, folder: str, fails: dict[int, tuple[int, ...]]) -> None:
    meet(rank, world_size, Path(folder))
    inner = Failing(fails.get(rank, ()), dropout=0.0)
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    controller = rlbatch.BatchController(
        model,
        optimizer,
        batch_size=BASE,
        policy=Measuring((1.0, 0.5, 1.0, -1.0)),
        cost="samples",
        lr_coupling="none",
        micro_batch_size="auto",
        memory_limit=10**9,
        log_dir=Path(folder) / "log",
    )
    shares = DataLoader(Rows(), BASE // world_size, shuffle=True)
    loader = controller.loader(shares)
    steps: list[list[int]] = []
    under_way: list[int] = []
    warnings.simplefilter("ignore", RuntimeWarning)
    for _ in range(4):
        for index, x, y in loader:
            with controller.within_memory():
                controller.backward(nn.functional.mse_loss(model(x), y))
                under_way += index.tolist()
            if controller.step():
                steps.append(under_way)
            if controller.batch_complete is False and not _open(controller):
                under_way = []
    controller.close()
    weights = torch.cat([p.detach().reshape(-1) for p in inner.parameters()])
    torch.save({"weights": weights, "steps": steps}, Path(folder) / f"{rank}.pt")
    leave()


def _open(controller: Any) -> bool:
    return controller._run.accumulator.parts.is_open


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("fails", [{1: (4,)}, {0: (3, 8)}, {0: (6,), 1: (6, 7)}, {1: (1,)}])
def test_a_rank_out_of_memory_takes_the_others_along(
    tmp_path: Path, fails: dict[int, tuple[int, ...]]
) -> None:
    spawn(train, (2, str(tmp_path), fails), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["weights"], second["weights"])
    steps = [a + b for a, b in zip(first["steps"], second["steps"], strict=True)]
    assert sorted(i for step in steps for i in step) == sorted(4 * list(range(ROWS)))
    model, data = Failing(dropout=0.0), Rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in steps:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data.x[step]), data.y[step]).backward()
        optimizer.step()
    plain = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(first["weights"], plain)
    events = [record.event for record in read_episode(tmp_path / "log").records]
    assert 1 <= events.count("out_of_memory") <= sum(map(len, fails.values()))
