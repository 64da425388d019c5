"""Controlled loops on Accelerate against plain ones."""

from __future__ import annotations

import copy
import math
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

pytest.importorskip("accelerate")

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError, DeliveryError
from rlbatch.integrations.accelerate import AcceleratedController
from rlbatch.log.episode_log import read_episode
from rlbatch.testing import ScriptedPolicy
from rlbatch.testing.actuator_contract import ActuatorContract, Job, LoopContract, Step
from tests.helpers import perceptron as network
from tests.rlbatch.control.rank_runs import leave, spawn
from tests.rlbatch.integrations.steered import ByBits

SAMPLES = 75
BASE = 8
GROW = ScriptedPolicy((1.0, 0.5, -2.0, 2.5))
CONFIG: dict[str, Any] = {
    "min_batch_size": 1,
    "first_chunk_steps": 2,
    "min_chunk_steps": 2,
    "max_chunk_steps": 2,
    "on_error": "raise",
    "cost": "samples",
    "guard": None,
    "lr_coupling": "none",
}


_CONTROLLERS: list[AcceleratedController] = []


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    """Accelerators share their state within a process; and logs are closed."""
    yield
    while _CONTROLLERS:
        _CONTROLLERS.pop().close()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


class Rows(Dataset[tuple[int, Tensor, Tensor]]):
    """Numbered rows: a batch tells which samples it holds."""

    def __init__(self, size: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.x[index], self.y[index]


class Run:
    """A small training, with a controller or without; `train` may be called again to go on."""

    def __init__(
        self,
        policy: Any = None,
        *,
        accumulation: int = 1,
        epochs: int = 3,
        samples: int = SAMPLES,
        workers: int = 0,
        precision: str | None = None,
        seedable: bool = False,
        prepared: bool = True,
        **settings: Any,
    ) -> None:
        _ = AcceleratorState._reset_state(reset_partial_state=True), GradientState._reset_state()
        torch.manual_seed(5)
        self.accelerator = Accelerator(
            cpu=True,
            mixed_precision=precision,
            gradient_accumulation_steps=accumulation,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable),
        )
        model = network()
        optimizer = AdamW(model.parameters(), lr=3e-3)
        data = Rows(samples)
        loader = DataLoader(data, BASE // accumulation, shuffle=True, num_workers=workers)
        steps = epochs * math.ceil(samples / BASE)
        schedule = CosineAnnealingLR(optimizer, steps)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(
            model, optimizer, schedule
        )
        self.loader: Any = self.accelerator.prepare(loader) if prepared else loader
        self.controller: Any = None
        if policy is not None:
            self.controller = AcceleratedController(
                self.accelerator,
                self.model,
                self.optimizer,
                batch_size=BASE,
                scheduler=self.schedule,
                policy=policy,
                **{**CONFIG, **settings},
            )
            _CONTROLLERS.append(self.controller)
            self.accelerator.register_for_checkpointing(self.controller)
            self.loader = self.controller.loader(self.loader)
        self.losses: list[float] = []
        self.batches: list[list[int]] = [[]]
        self.rates: list[float] = []

    def train(
        self, epochs: int = 3, *, stop_after: int | None = None, clip: float | None = None
    ) -> Run:
        for _ in range(epochs):
            for index, x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = nn.functional.mse_loss(self.model(x), y)
                    self.losses.append(float(loss.detach()))
                    self.batches[-1] += index.tolist()
                    if self.controller is None:
                        self._plain_step(loss, clip)
                    else:
                        self.controller.backward(loss)
                        if self.accelerator.sync_gradients and clip is not None:
                            self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                        self.controller.step()
                if self.accelerator.sync_gradients:
                    self.batches.append([])
                    self.rates.append(self.schedule.get_last_lr()[0])
                if stop_after is not None and len(self.batches) > stop_after:
                    return self
        return self

    def _plain_step(self, loss: Tensor, clip: float | None) -> None:
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches if batch]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


# -- delivered is decided --


class JobLoop:
    """A job's loop on Accelerate, which can be saved after a step and made anew."""

    def __init__(self, job: Job, accumulation: int = 1) -> None:
        self.job = job
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        loader = DataLoader(job.dataset, job.batch_size // accumulation, shuffle=True)
        optimizer = SGD(job.model.parameters(), lr=job.learning_rate)
        prepared = self.accelerator.prepare(job.model, optimizer, loader)
        self.model, self.optimizer, self.loader = prepared
        self.steps: list[Step] = []

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def plain(self) -> list[list[Tensor]]:
        found: list[list[Tensor]] = []
        for _ in range(self.job.epochs):
            for x, y, _ in self.loader:
                self.accelerator.backward(nn.functional.mse_loss(self.model(x), y))
                self.optimizer.step()
                self.optimizer.zero_grad()
                found.append(self.parameters())
        return found

    def control(self) -> JobLoop:
        job = self.job
        self.controller = AcceleratedController(
            self.accelerator,
            self.model,
            self.optimizer,
            batch_size=job.batch_size,
            policy=job.policy,
            **job.settings,
        )
        self.batches = self.controller.loader(self.loader)
        self.accelerator.register_for_checkpointing(self.controller)
        return self

    def train(self, steps: int = 10**9) -> list[Step]:
        controller = self.controller
        while (epoch := self.batches.sampler.epoch) < self.job.epochs:
            size, parts = controller.batch_size, []
            for x, y, index in self.batches:
                with self.accelerator.accumulate(self.model):
                    parts.append(index.tolist())
                    controller.backward(nn.functional.mse_loss(self.model(x), y))
                    if not controller.step():
                        continue
                seen = controller.samples_seen
                self.steps.append(Step(size, epoch, parts, self.parameters(), seen))
                size, parts = controller.batch_size, []
                if len(self.steps) == steps:
                    return self.steps
        return self.steps


class TestContract(LoopContract):
    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def train(self, job: Job) -> list[Step]:
        return JobLoop(job).control().train()

    def plain(self, job: Job) -> list[list[Tensor]]:
        return JobLoop(job).plain()

    def resume(self, job: Job, after: int) -> list[Step]:
        first = JobLoop(job).control()
        steps = list(first.train(after))
        first.accelerator.save_state(str(self.folder))
        second = JobLoop(self.job(0)).control()
        second.accelerator.load_state(str(self.folder))
        return steps + second.train()


class TestContractAccumulating(ActuatorContract):
    def train(self, job: Job) -> list[Step]:
        return JobLoop(job, 4).control().train()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_log_names_the_steps_that_the_model_saw(tmp_path: Path, workers: int) -> None:
    """Also with the look-ahead that a prepared loader has: it is not the one that is used."""
    run = Run(GROW, workers=workers, epochs=6, log_dir=tmp_path).train(6)
    expected = [BASE] * len(run.sizes)
    for line in read_episode(tmp_path).records:
        if line.event == "decision" and line.effective_step is not None:
            rest = len(expected) - line.effective_step
            expected[line.effective_step :] = [line.batch_size] * rest
    assert len(set(expected)) > 3
    seen = 0
    for got, said in zip(run.sizes, expected, strict=True):
        seen += got
        assert got == said or (seen % SAMPLES == 0 and got < said)
    order = [index for batch in run.batches for index in batch]
    for epoch in range(6):
        assert sorted(order[epoch * SAMPLES :][:SAMPLES]) == list(range(SAMPLES))


# -- the plain run --


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({}, None),
        ({"samples": 72, "accumulation": 2}, 0.1),
        ({"samples": 72, "accumulation": 4, "precision": "bf16"}, None),
        ({"precision": "bf16"}, 0.1),
        ({"seedable": True}, None),
        ({"workers": 1}, None),
        ({"prepared": False}, None),
    ],
    ids=str,
)
def test_fixed_is_the_plain_run_bit_for_bit(options: dict[str, Any], clip: float | None) -> None:
    plain = Run(**options).train(clip=clip)
    fixed = Run("fixed", **options).train(clip=clip)
    assert plain.batches == fixed.batches
    assert plain.losses == fixed.losses
    assert plain.rates == fixed.rates
    assert torch.equal(plain.weights, fixed.weights)


@pytest.mark.parametrize("samples", [75, 79])
def test_an_epochs_last_step_is_a_mean_where_accelerate_divides_by_parts_that_it_lacks(
    samples: int,
) -> None:
    """Steps of 2 x 4: the last has 3, or 4 + 3. Accelerate halves each part's mean, whatever."""
    for policy in (None, "fixed"):
        run = Run(policy, accumulation=2, samples=samples)
        run.model[2].p = 0.0  # its dropout
        found: list[tuple[Tensor, Any]] = []

        def watch(*_: Any, run: Run = run, found: Any = found) -> None:
            grads = [p.grad.reshape(-1) for p in run.model.parameters()]
            found.append((torch.cat(grads), copy.deepcopy(run.model)))

        run.optimizer.optimizer.register_step_pre_hook(watch)
        run.train(1)
        data, (gradient, model), rows = Rows(samples), found[9], run.batches[9]

        def mean(part: list[int], data: Rows = data, model: Any = model) -> Tensor:
            loss = nn.functional.mse_loss(model(data.x[part]), data.y[part])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            return torch.cat([grad.reshape(-1) for grad in grads])

        parts = [rows[:4], rows[4:]] if len(rows) > 4 else [rows]
        plain = sum((mean(part) / 2 for part in parts), torch.zeros_like(gradient))
        expected = plain if policy is None else mean(rows)
        assert float((plain - mean(rows)).norm() / mean(rows).norm()) > 0.01
        torch.testing.assert_close(gradient, expected)


# -- what is counted in steps counts samples --


def test_the_schedule_ends_where_it_would_whatever_the_sizes() -> None:
    plain, grown = Run().train(), Run(GROW).train()
    assert len(set(grown.sizes)) > 3
    at, epoch = 0, 0
    for size, rate in zip(grown.sizes, grown.rates, strict=True):
        at += size
        if at == SAMPLES:
            at, epoch = 0, epoch + 1
        due = epoch * math.ceil(SAMPLES / BASE) + at // BASE
        assert rate == pytest.approx(3e-3 if due == 0 else plain.rates[due - 1], abs=1e-12)
    assert grown.rates[-1] == plain.rates[-1]


def test_the_learning_rate_follows_within_the_step_alone() -> None:
    run = Run(ScriptedPolicy((2.0, -3.0)), samples=640, epochs=1, lr_coupling="sqrt")
    inside: list[float] = []
    hook = run.optimizer.optimizer.register_step_pre_hook
    hook(lambda optimizer, *_: inside.append(optimizer.param_groups[0]["lr"]))
    before = [3e-3]
    for index, x, y in run.loader:
        run.controller.backward(nn.functional.mse_loss(run.model(x), y))
        run.controller.step()
        assert inside[-1] == pytest.approx(before[-1] * math.sqrt(len(index) / BASE))
        before.append(run.schedule.get_last_lr()[0])
    assert len(set(inside)) > 10


# -- going on from a checkpoint --


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize("stop", [3, 9, 15])
def test_a_resumed_run_decides_and_sees_the_same(
    tmp_path: Path, accumulation: int, seedable: bool, stop: int
) -> None:
    """Accelerate itself skips batches, which are of another size by then."""
    script = ScriptedPolicy((1.0, 0.5, -1.5, 2.0, -1.0, 1.0))
    options: dict[str, Any] = {
        "accumulation": accumulation,
        "seedable": seedable,
        "lr_coupling": "sqrt",
        "epochs": 4,
    }
    whole = Run(script, log_dir=tmp_path / "log", **options).train(4)
    stopped = Run(script, log_dir=tmp_path / "other", **options).train(4, stop_after=stop)
    stopped.accelerator.save_state(str(tmp_path / "state"))
    epochs_left = 4 - stopped.controller.components["epoch"]
    del stopped

    again = Run(script, log_dir=tmp_path / "other", **options)
    again.accelerator.load_state(str(tmp_path / "state"))
    again.train(epochs_left)
    assert again.batches == whole.batches[stop:]
    assert again.rates == whole.rates[stop:]
    assert torch.equal(again.weights, whole.weights)
    logs = [read_episode(tmp_path / name).records for name in ("log", "other")]
    sizes = [[line.batch_size for line in log if line.event == "decision"] for log in logs]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_runs_resumed_anywhere_decide_by_the_same_bits(tmp_path: Path, accumulation: int) -> None:
    """Killed at random steps, within chunks that the guard may undo and with noise measured."""
    options: dict[str, Any] = {
        "accumulation": accumulation,
        "lr_coupling": "adascale",
        "noise_rate": 2.0,
        "max_batch_size": 40,
        "guard": GuardConfig(),
        "min_chunk_steps": 3,
        "max_chunk_steps": 5,
    }
    whole = Run(ByBits(), **options).train(3)
    assert len(set(whole.sizes)) > 3
    steps = len(whole.batches) - 1
    for stop in random.Random(accumulation).sample(range(1, steps), 5):
        stopped = Run(ByBits(), **options).train(3, stop_after=stop)
        stopped.accelerator.save_state(str(tmp_path / "state"))
        left = 3 - stopped.controller.components["epoch"]
        again = Run(ByBits(), **options)
        again.accelerator.load_state(str(tmp_path / "state"))
        again.train(left)
        assert again.batches == whole.batches[stop:], stop
        assert again.losses == whole.losses[-len(again.losses) :], stop
        assert torch.equal(again.weights, whole.weights), stop


# -- what loops do --


def test_leaving_an_epoch_within_a_batch_leaves_no_gradient() -> None:
    run = Run("fixed", accumulation=4)
    for _, x, y in run.loader:
        with run.accelerator.accumulate(run.model):
            run.controller.backward(nn.functional.mse_loss(run.model(x), y))
            run.controller.step()
        break
    assert any(p.grad is not None for p in run.model.parameters())
    for _ in run.loader:
        assert all(p.grad is None for p in run.model.parameters())
        break


def test_between_epochs_the_accelerator_is_as_it_was() -> None:
    run = Run(GROW, accumulation=2).train(1)
    assert run.accelerator.gradient_accumulation_steps == 2
    assert run.accelerator.sync_gradients
    assert run.accelerator.step == 0


def test_a_batch_without_a_step_is_an_error() -> None:
    run = Run("fixed")
    batches = iter(run.loader)
    next(batches)
    with pytest.raises(DeliveryError, match=r"no backward\(loss\) and step\(\)"):
        next(batches)


def test_validation_is_seen_and_not_timed(tmp_path: Path) -> None:
    run = Run("fixed", log_dir=tmp_path)
    run.train(1)
    with run.controller.paused():
        run.controller.report_validation(0.25)
    run.train(1)
    records = [r for r in read_episode(tmp_path).records if r.event == "decision"]
    seen = [r.signals["val_loss"] for r in records]
    assert [value for value in seen if not math.isnan(float(str(value)))] == [0.25]


def test_the_changed_lines_of_the_page_run(
    changed_lines: Callable[[str], tuple[str, str]],
) -> None:
    for controlled, lines in enumerate(changed_lines("accelerate.md")):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
        model = network()
        optimizer = AdamW(model.parameters(), lr=3e-3)
        rows = TensorDataset(Rows().x, Rows().y)
        steps = 2 * math.ceil(SAMPLES / 32)
        scope: dict[str, Any] = {
            "accelerator": accelerator,
            "model": model,
            "optimizer": optimizer,
            "loader": DataLoader(rows, 8, shuffle=True),
            "scheduler": CosineAnnealingLR(optimizer, steps),
            "loss_fn": nn.functional.mse_loss,
            "epochs": 2,
        }
        exec(lines, scope)
        assert scope["scheduler"].get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)
        if controlled:
            _CONTROLLERS.append(scope["controller"])
            assert scope["controller"].samples_seen == 2 * SAMPLES


# -- several processes --


def train_a_rank(rank: int, folder: str, port: int, script: tuple[float, ...] | None) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.manual_seed(5)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(6, 1).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = CosineAnnealingLR(optimizer, 2 * 3 * math.ceil(SAMPLES / 16))
    torch.manual_seed(100 + rank)  # a rank's own random numbers
    loader = DataLoader(Rows(), 4, shuffle=True)
    prepared: Any = accelerator.prepare(model, optimizer, loader, schedule)
    model, optimizer, loader, schedule = prepared
    controller = AcceleratedController(
        accelerator,
        model,
        optimizer,
        batch_size=16,
        scheduler=schedule,
        policy="fixed" if script is None else ScriptedPolicy(script),
        log_dir=Path(folder) / "log",
        **CONFIG,
    )
    loader = controller.loader(loader)
    batches: list[list[int]] = [[]]
    for _ in range(3):
        for index, x, y in loader:
            with accelerator.accumulate(model):
                batches[-1] += index.tolist()
                controller.backward(nn.functional.mse_loss(model(x.double()), y.double()))
                if controller.step():
                    batches.append([])
    controller.close()
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    state = {"weights": weights, "batches": batches[:-1], "rate": schedule.get_last_lr()[0]}
    torch.save(state, Path(folder) / f"{rank}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("script", [None, (1.0, 0.6, -2.0)])
def test_processes_share_what_is_decided(
    tmp_path: Path, script: tuple[float, ...] | None, unused_port: int
) -> None:
    spawn(train_a_rank, (str(tmp_path), unused_port, script), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["rate"] == ranks[1]["rate"] == pytest.approx(0.0, abs=1e-12)
    batches = [a + b for a, b in zip(*(rank["batches"] for rank in ranks), strict=True)]
    order = [index for batch in batches for index in batch]
    for epoch in range(3):
        assert sorted(order[epoch * SAMPLES :][:SAMPLES]) == list(range(SAMPLES))
    assert len({len(batch) for batch in batches}) > (1 if script is None else 3)

    torch.manual_seed(5)
    model, data = nn.Linear(6, 1).double(), Rows()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = CosineAnnealingLR(optimizer, 2 * 3 * math.ceil(SAMPLES / 16))
    seen = made = 0
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data.x[batch].double()), data.y[batch].double()).backward()
        optimizer.step()
        seen += len(batch)
        epoch, at = divmod(seen, SAMPLES)
        due = 2 * (epoch * math.ceil(SAMPLES / 16) + at // 16)
        while made < due:
            schedule.step()
            made += 1
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ranks[0]["weights"], weights, rtol=1e-9, atol=1e-11)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# -- what is refused --


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


def make(batch_size: int = BASE, accumulation: int = 1, **kwargs: Any) -> AcceleratedController:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = network()
    model, optimizer = accelerator.prepare(model, SGD(model.parameters(), lr=0.1))
    return AcceleratedController(
        accelerator, model, optimizer, batch_size=batch_size, policy="fixed", **kwargs
    )


def test_loaders_that_cannot_be_controlled_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="loader of batch size 8, and this one has 4"):
        make().loader(DataLoader(Rows(), 4))
    with pytest.raises(ConfigurationError, match="loader of batch size 4, and this one has 8"):
        make(accumulation=2).loader(DataLoader(Rows(), 8))
    with pytest.raises(ConfigurationError, match="drop_last leaves out 3 samples"):
        make().loader(DataLoader(Rows(), 8, drop_last=True))
    with pytest.raises(ConfigurationError, match="IterableDataset Stream without __len__"):
        make().loader(DataLoader(Stream(), 8))
    with pytest.raises(ConfigurationError, match="samples of an optimizer step"):
        make(batch_size=9, accumulation=2)


@pytest.mark.parametrize(
    "kind", [DistributedType.MULTI_XPU, DistributedType.DEEPSPEED, DistributedType.FSDP]
)
def test_other_ways_to_share_a_training_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: DistributedType
) -> None:
    accelerator, model = Accelerator(cpu=True), network()
    shared = AcceleratorState._shared_state
    monkeypatch.setitem(shared, "fsdp_plugin", SimpleNamespace(fsdp_version=1))
    monkeypatch.setitem(shared, "distributed_type", kind)
    with pytest.raises(ConfigurationError, match="Launch without DeepSpeed, the older FSDP"):
        AcceleratedController(
            accelerator, model, SGD(model.parameters(), lr=0.1), batch_size=BASE, policy="fixed"
        )


class KnownStream(IterableDataset[Any]):
    """The rows in an order of its own; it knows how many."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[Any]:
        return (Rows()[index] for index in torch.randperm(SAMPLES).tolist())


@pytest.mark.parametrize("prepared", [False, True])
def test_a_stream_of_known_length_is_regrouped(prepared: bool) -> None:
    """Each sample once an epoch, in steps of the sizes that were decided."""
    accelerator = Accelerator(cpu=True)
    own = network()
    model, optimizer = accelerator.prepare(own, SGD(own.parameters(), lr=0.1))
    controller = AcceleratedController(
        accelerator, model, optimizer, batch_size=BASE, policy=GROW, **CONFIG
    )
    _CONTROLLERS.append(controller)
    loader: Any = DataLoader(KnownStream(), BASE)
    loader = controller.loader(accelerator.prepare(loader) if prepared else loader)
    sizes: list[int] = []
    for _ in range(3):
        seen: list[int] = []
        for index, x, y in loader:
            seen += index.tolist()
            controller.backward(nn.functional.mse_loss(model(x), y))
            sizes.append(controller.step())
        assert sorted(seen) == list(range(SAMPLES))
    assert len(set(sizes)) > 3


def test_schedules_that_follow_a_metric_are_refused() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigurationError, match="after each evaluation"):
        AcceleratedController(
            accelerator,
            model,
            optimizer,
            batch_size=BASE,
            policy="fixed",
            scheduler=ReduceLROnPlateau(optimizer),
        )
