"""Controlled Lightning fits against plain ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from rlbatch.control.config import ControllerConfig
from rlbatch.control.guard import GuardConfig
from rlbatch.episode_log import read_episode
from rlbatch.errors import ConfigurationError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.policy import tools
from rlbatch.testing import ScriptedPolicy
from rlbatch.testing.actuator_contract import ActuatorContract, Job, Step

pytestmark = [
    # Lightning's advice on the number of workers, which is for larger data.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning builds a pytree with a function that torch is about to remove.
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # An example trains fewer batches than Lightning logs after.
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SAMPLES, BASE = 75, 8
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


class Net(LightningModule):
    """An ordinary module that remembers what reached it."""

    def __init__(
        self,
        schedule: Callable[[Any, Any], Any] | None = None,
        optimizer: Callable[[Any], Any] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.schedule = schedule
        self.make_optimizer = optimizer or (lambda parameters: AdamW(parameters, lr=3e-3))
        self.parts: list[tuple[int, int, list[int]]] = []  # epoch, steps made, samples
        self.losses: list[float] = []
        self.validated_at: list[int] = []  # samples seen in training

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, x, y = batch
        self.parts.append((self.trainer.current_epoch, self.trainer.global_step, index.tolist()))
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated_at.append(sum(len(part[2]) for part in self.parts))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer, self)}

    @property
    def windows(self) -> dict[int, list[list[int]]]:
        """The samples of each optimizer step's micro-batches, by epoch."""
        found: dict[int, dict[int, list[int]]] = {}
        for epoch, step, samples in self.parts:
            found.setdefault(epoch, {}).setdefault(step, []).extend(samples)
        return {epoch: list(steps.values()) for epoch, steps in found.items()}

    @property
    def sizes(self) -> list[int]:
        return [len(window) for windows in self.windows.values() for window in windows]

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])


def cosine(optimizer: Any, module: Any) -> dict[str, Any]:
    """The usual one: over the whole run, by the Trainer's own estimate."""
    steps = module.trainer.estimated_stepping_batches
    return {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}


class Run:
    """A small fit, with the callback or without."""

    def __init__(
        self,
        policy: Any = None,
        *,
        net: LightningModule | None = None,
        samples: int = SAMPLES,
        accumulation: int = 1,
        workers: int = 0,
        callbacks: tuple[Any, ...] = (),
        loader: Any = None,
        val: bool = True,
        data: Any = None,
        settings: dict[str, Any] | None = None,
        monitor: str | None = None,
        ckpt_path: Any = None,
        **trainer: Any,
    ) -> None:
        torch.manual_seed(5)
        self.net: Any = Net() if net is None else net
        self.callback: Any = None
        if policy is not None:
            config = {**CONFIG, **(settings or {})}
            self.callback = BatchSizeCallback(policy, monitor=monitor, **config)
            callbacks = (*callbacks, self.callback)  # last: it has to find its place itself
        options: dict[str, Any] = {
            "max_epochs": 3 if "max_steps" not in trainer else None,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "accumulate_grad_batches": accumulation,
            "callbacks": list(callbacks),
            **({} if val else {"limit_val_batches": 0}),
        }
        self.trainer = Trainer(**{**options, **trainer})
        if data is not None:
            self.trainer.fit(self.net, datamodule=data, ckpt_path=ckpt_path)
            return
        if loader is None:
            loader = DataLoader(
                Rows(samples), BASE // accumulation, shuffle=True, num_workers=workers
            )
        validates = is_overridden("validation_step", self.net)
        validation = DataLoader(Rows(20), 10) if validates else None
        self.trainer.fit(self.net, loader, validation, ckpt_path=ckpt_path)

    @property
    def controller(self) -> Any:
        return self.callback.controller

    @property
    def rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]


class Follow:
    """Asks for the batch size that a function of the steps made returns."""

    needs_gradient_noise = False

    def __init__(self, decide_size: Callable[[int], int]) -> None:
        self._decide_size = decide_size

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return ()

    def decide(self, observation: Any, signals: Any, state: Any) -> tuple[Any, Any]:
        size = self._decide_size(int(signals.total_steps))
        return tools.decision(math.log2(size / float(signals.batch_size)), "follow"), state


EVERY_STEP = {"first_chunk_steps": 1, "min_chunk_steps": 1, "max_chunk_steps": 1}


# -- delivered is decided --


class Recorder(Callback):
    """Notes each optimizer step of a job, as seen from outside."""

    callback: Any

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.parts: list[list[int]] = []
        self.made = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.parts.append(batch[2].tolist())
        if trainer.global_step > self.made:
            self.made = trainer.global_step
            copies = [p.detach().clone() for p in pl_module.parameters()]
            self.steps.append(Step(self.size, trainer.current_epoch, self.parts, copies))
            self.parts = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.parts:
            self.size = self.callback.controller.batch_size


class JobModule(LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model, self.rate = job.model, job.learning_rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return SGD(self.model.parameters(), lr=self.rate)


class TestContract(ActuatorContract):
    accumulation = 1

    def train(self, job: Job) -> list[Step]:
        recorder = Recorder()
        recorder.callback = BatchSizeCallback(
            Follow(job.decide),
            micro_batch_size=job.micro_batch_size,
            max_batch_size=24,
            **{**CONFIG, **EVERY_STEP},
        )
        trainer = Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            precision="64-true",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accumulate_grad_batches=self.accumulation,
            callbacks=[recorder.callback, recorder],
        )
        loader = DataLoader(job.dataset, job.batch_size // self.accumulation, shuffle=True)
        trainer.fit(JobModule(job), loader)
        return recorder.steps


class TestContractAccumulating(TestContract):
    accumulation = 4


class Linear(LightningModule):
    """Its gradient is the mean of the samples that it is of: what each step is made of shows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.parts: list[list[int]] = []
        self.gradients: list[Tensor] = []
        self.windows: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.parts.append(batch.tolist())
        return self.weight[batch].mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.clone())
        self.windows.append([i for part in self.parts for i in part])
        self.parts = []

    def configure_optimizers(self) -> Any:
        return SGD([self.weight], lr=1.0)


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def mean_of(windows: list[list[int]], size: int) -> list[Tensor]:
    expected = []
    for window in windows:
        gradient = torch.zeros(size, dtype=torch.float64)
        gradient[window] = 1.0 / len(window)
        expected.append(gradient)
    return expected


@pytest.mark.parametrize("accumulation", [1, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_leaves_a_stale_or_wrongly_divided_gradient(accumulation: int, seed: int) -> None:
    """Setting `accumulate_grad_batches` at a wrong moment adds stale ones or drops some."""
    size = 203
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 40, (400,), generator=draw).tolist()
    net = Linear(size)
    loader = DataLoader(Numbers(size), 16 // accumulation, shuffle=True)
    settings = {**EVERY_STEP, "micro_batch_size": 16 // accumulation + 1}
    Run(
        Follow(lambda made: sizes[made]),
        net=net,
        loader=loader,
        val=False,
        accumulation=accumulation,
        settings=settings,
    )
    assert len({len(window) for window in net.windows}) > 10
    for found, expected in zip(net.gradients, mean_of(net.windows, size), strict=True):
        assert torch.allclose(found, expected, rtol=1e-6, atol=0)
    assert sorted(chain(*net.windows)) == sorted(3 * list(range(size)))


def test_the_last_partial_window_has_the_gradient_of_its_samples() -> None:
    """Lightning divides it by the number of batches of a whole one."""
    size = 26  # three windows of 8 and one of 2
    loader = DataLoader(Numbers(size), 2, shuffle=True)
    made = {}
    for policy in (None, "fixed"):
        made[policy] = net = Linear(size)
        Run(policy, net=net, loader=loader, val=False, accumulation=4, max_epochs=1)
    wrong = mean_of(made[None].windows, size)[-1] / 4
    assert torch.allclose(made[None].gradients[-1], wrong)  # if this is mended, so is this test
    found, expected = made["fixed"].gradients, mean_of(made["fixed"].windows, size)
    assert [len(window) for window in made["fixed"].windows] == [8, 8, 8, 2]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_smaller_batches_in_an_epoch_do_not_cut_it_short(workers: int) -> None:
    """A Trainer freezes the number of batches at the start: 280 of 800 samples were seen."""
    loader = DataLoader(Rows(400), 32, shuffle=True, num_workers=workers)
    run = Run(ScriptedPolicy((-2.0,)), loader=loader, max_epochs=2, val=False)
    for windows in run.net.windows.values():
        assert sorted(chain(*windows)) == list(range(400))
    assert run.net.sizes[:2] == [32, 32]
    assert set(run.net.sizes[12:]) == {8}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_log_names_the_steps_that_the_model_saw(tmp_path: Path, workers: int) -> None:
    run = Run(GROW, workers=workers, max_epochs=6, settings={"log_dir": tmp_path})
    sizes = run.net.sizes
    expected = [BASE] * len(sizes)
    for line in read_episode(tmp_path).records:
        if line.event == "decision" and line.effective_step is not None:
            rest = len(expected) - line.effective_step
            expected[line.effective_step :] = [line.batch_size] * rest
    ends = [sum(map(len, run.net.windows[epoch])) for epoch in range(6)]
    assert ends == 6 * [SAMPLES]
    number = 0
    for windows in run.net.windows.values():
        for window in windows[:-1]:
            assert len(window) == expected[number], number
            number += 1
        assert len(windows[-1]) <= expected[number]
        number += 1
    assert len(set(sizes)) > 3


# -- the fixed policy is the plain run --


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Rows(), BASE, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Rows(20), 10)


def schedules(kind: str) -> Callable[[Any, Any], Any]:
    def make(optimizer: Any, module: Any) -> Any:
        made: dict[str, Any] = {
            "step": {"scheduler": CosineAnnealingLR(optimizer, 40), "interval": "step"},
            "every third": {
                "scheduler": StepLR(optimizer, 2),
                "interval": "step",
                "frequency": 3,
            },
            "epoch": {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"},
            "plateau": {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)},
        }
        if kind == "plateau":
            return {**made[kind], "monitor": "val_loss"}
        return made[kind]

    return make


PLAIN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulating": {"accumulation": 4, "samples": 64},
    "workers": {"workers": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
    "true bf16": {"precision": "bf16-true"},
    "steps": {"max_steps": 17},
    "steps and epochs": {"max_steps": 100, "max_epochs": 2},
    "few steps": {"max_steps": 3},
    "validating often": {"val_check_interval": 0.3},
    "validating by batches": {"val_check_interval": 4},
    "validating across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "validating seldom": {"check_val_every_n_epoch": 2},
    "validating in an accumulation": {
        "val_check_interval": 8,
        "accumulation": 4,
        "samples": 96,
    },
    "no validation": {"val": False},
    "limited": {"limit_train_batches": 5},
    "limited in part": {"limit_train_batches": 0.5, "val_check_interval": 0.5},
    "a fast run": {"fast_dev_run": 2, "max_epochs": 5},
    "one batch an epoch": {"samples": 5},
    "at least some steps": {"min_steps": 12},
    "no inference mode": {"inference_mode": False},
}


@pytest.mark.parametrize("name", PLAIN)
def test_fixed_is_the_plain_fit(name: str) -> None:
    found = {}
    for policy in (None, "fixed"):
        run = Run(policy, net=Net(cosine), **PLAIN[name])
        found[policy] = run
    assert_same(found[None], found["fixed"])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["step", "every third", "epoch", "plateau"])
def test_fixed_keeps_schedules(kind: str, accumulation: int) -> None:
    def run(policy: Any) -> Run:
        net = Net(schedules(kind))
        return Run(policy, net=net, accumulation=accumulation, samples=72)

    plain, fixed = run(None), run("fixed")
    assert_same(plain, fixed)
    assert plain.rate < 3e-3


@pytest.mark.parametrize("samples", [64, 75])
def test_fixed_keeps_the_order_of_a_loader_with_a_generator(samples: int) -> None:
    def run(policy: Any) -> Run:
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(Rows(samples), BASE, shuffle=True, generator=generator)
        return Run(policy, loader=loader)

    assert_same(run(None), run("fixed"))


def test_fixed_keeps_a_weighted_order() -> None:
    def run(policy: Any) -> Run:
        sampler = WeightedRandomSampler([1.0 + i % 3 for i in range(SAMPLES)], 50)
        return Run(policy, loader=DataLoader(Rows(), BASE, sampler=sampler))

    assert_same(run(None), run("fixed"))


def test_fixed_is_the_plain_fit_of_a_data_module() -> None:
    assert_same(Run(None, data=Data()), Run("fixed", data=Data()))


def assert_same(plain: Run, controlled: Run) -> None:
    assert plain.net.parts == controlled.net.parts
    assert plain.net.losses == controlled.net.losses
    assert plain.net.validated_at == controlled.net.validated_at
    assert torch.equal(plain.net.weights, controlled.net.weights)
    assert plain.rate == controlled.rate
    assert plain.trainer.global_step == controlled.trainer.global_step
    assert plain.trainer.current_epoch == controlled.trainer.current_epoch
    metrics = plain.trainer.callback_metrics
    assert metrics.keys() <= controlled.trainer.callback_metrics.keys()
    for name, value in metrics.items():
        assert controlled.trainer.callback_metrics[name] == value, name


# -- schedules, limits and validations go by samples --


class Rates(Callback):
    """Notes the samples seen and the learning rate behind each optimizer step."""

    def __init__(self) -> None:
        self.seen = 0
        self.rates: dict[int, float] = {}
        self.used: list[float] = []
        self.made = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += len(batch[0])
        if len(self.used) > self.made:
            self.made = len(self.used)
            self.rates[self.seen] = trainer.optimizers[0].param_groups[0]["lr"]


def halving(every: int = 1, frequency: int = 1) -> Callable[[Any, Any], Any]:
    """A schedule whose rate tells how many steps it made."""

    def make(optimizer: Any, module: Any) -> Any:
        scheduler = LambdaLR(optimizer, lambda step: 0.99**step)
        return {"scheduler": scheduler, "interval": "step", "frequency": frequency}

    return make


@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_schedule_by_steps_stands_where_the_samples_are(
    frequency: int, accumulation: int
) -> None:
    """At each place that the plain run has too, the rate is the plain run's."""

    def run(policy: Any) -> dict[int, float]:
        rates = Rates()
        net = Net(halving(frequency=frequency))
        Run(policy, net=net, callbacks=(rates,), accumulation=accumulation, max_epochs=4)
        return rates.rates

    plain, controlled = run(None), run(ScriptedPolicy((1.0, 0.0, -1.0, 2.0)))
    common = [seen for seen in plain if seen in controlled]
    assert len(common) > 6
    assert [controlled[seen] for seen in common] == [plain[seen] for seen in common]
    assert len(controlled) != len(plain)


@pytest.mark.parametrize("policy", ["fixed", GROW, ScriptedPolicy((-3.0,))])
def test_a_cosine_over_the_estimated_steps_ends_where_the_run_ends(policy: Any) -> None:
    run = Run(policy, net=Net(cosine))
    assert run.rate == pytest.approx(0.0, abs=1e-12)


def test_a_schedule_by_epochs_makes_one_step_an_epoch() -> None:
    run = Run(GROW, net=Net(schedules("epoch")))
    assert run.rate == pytest.approx(3e-3 / 8)


@pytest.mark.parametrize("policy", [GROW, ScriptedPolicy((2.0,)), ScriptedPolicy((-3.0,))])
@pytest.mark.parametrize("steps", [1, 7, 10, 23])
def test_max_steps_counts_steps_of_the_users_batch_size(policy: Any, steps: int) -> None:
    def samples(policy: Any) -> int:
        return sum(len(part) for *_, part in Run(policy, max_steps=steps).net.parts)

    assert samples(policy) == samples(None)


def test_min_steps_counts_steps_of_the_users_batch_size() -> None:
    """The plain run stops with the epoch in which it has made twelve steps."""
    for policy in ("fixed", ScriptedPolicy((3.0,)), ScriptedPolicy((-3.0,))):
        run = Run(policy, min_steps=12, max_epochs=9, callbacks=(Stop(),))
        assert run.trainer.current_epoch == 2, policy


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.3},
        {"val_check_interval": 4},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"val_check_interval": 1.0},
    ],
)
@pytest.mark.parametrize("policy", [GROW, ScriptedPolicy((-3.0,))])
def test_validations_stay_at_their_samples(options: dict[str, Any], policy: Any) -> None:
    """Each is made with the first step at or behind the place of the plain run's."""
    plain, run = Run(None, **options).net, Run(policy, **options).net
    places, seen = [], 0
    for size in run.sizes:
        seen += size
        places.append(seen)
    expected = sorted({min(p for p in places if p >= at) for at in plain.validated_at})
    assert run.validated_at == expected


def test_a_validation_by_the_clock_stays() -> None:
    run = Run(GROW, val_check_interval={"seconds": 0}, check_val_every_n_epoch=None)
    assert run.net.validated_at == torch.tensor(run.net.sizes).cumsum(0).tolist()


def test_limited_epochs_hold_their_samples() -> None:
    run = Run(GROW, limit_train_batches=5)
    assert [sum(map(len, windows)) for windows in run.net.windows.values()] == [40, 40, 40]
    orders = [sorted(chain(*windows)) for windows in run.net.windows.values()]
    assert orders[0] != orders[1]  # of a new shuffle each


# -- the rest of the Trainer --


def test_metrics_of_an_epoch_are_those_of_its_samples() -> None:
    """Each batch weighs by its size in what is logged for an epoch."""
    run = Run(GROW, net=Net(dropout=0.0, optimizer=lambda p: SGD(p, lr=0.0)))
    x, y = Rows().x, Rows().y
    with torch.no_grad():
        expected = nn.functional.mse_loss(run.net.net(x), y)
    assert run.trainer.callback_metrics["train_loss_epoch"] == pytest.approx(float(expected))


def test_the_batch_size_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor("step")
    run = Run(GROW, logger=logger, log_every_n_steps=1, callbacks=(monitor,))
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("rlbatch/batch_size")
    found = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert found == run.net.sizes
    assert any(name.startswith("lr-") for name in lines[0].split(","))


@pytest.mark.parametrize("rule", ["sqrt", "linear"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_learning_rate_follows_the_batch_size(rule: str, precision: str) -> None:
    rates = Rates()
    net = Net(optimizer=lambda p: SGD(p, lr=0.01))
    run = Run(
        ScriptedPolicy((1.0, -2.0)),
        net=net,
        callbacks=(rates,),
        precision=precision,
        settings={"lr_coupling": rule},
        max_epochs=1,
    )
    steps = run.net.sizes[:-1]
    power = 0.5 if rule == "sqrt" else 1.0
    assert rates.used[: len(steps)] == pytest.approx([0.01 * (n / BASE) ** power for n in steps])
    assert set(rates.rates.values()) == {0.01}  # schedules and logs see the user's


def test_gradients_are_clipped_whole() -> None:
    """A step of SGD at rate 1 moves by the clipped gradient of all its samples."""
    size, net = 60, Linear(60)
    run = Run(
        ScriptedPolicy((1.0, -2.0)),
        net=net,
        loader=DataLoader(Numbers(size), 8, shuffle=True),
        max_epochs=1,
        gradient_clip_val=0.05,
        settings={"micro_batch_size": 3},
    )
    moved = torch.zeros(size, dtype=torch.float64)
    for window in net.windows:
        gradient = mean_of([window], size)[0]
        moved -= gradient * min(1.0, 0.05 / float(gradient.norm()))
    assert torch.allclose(run.net.weight.detach(), moved, rtol=1e-4)


def test_bf16_trains_in_parts() -> None:
    run = Run(GROW, precision="bf16-mixed", settings={"micro_batch_size": 5}, max_epochs=8)
    assert [sum(map(len, w)) for w in run.net.windows.values()] == 8 * [SAMPLES]
    assert sum(run.net.losses[-20:]) < 0.9 * sum(run.net.losses[:20])


class Skipping(Net):
    """Returns no loss for some batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_batch_without_a_loss_is_left_out() -> None:
    plain, fixed = Run(None, net=Skipping()), Run("fixed", net=Skipping())
    assert_same(plain, fixed)
    run = Run(GROW, net=Skipping(), settings={"micro_batch_size": 5})
    assert [sum(map(len, w)) for w in run.net.windows.values()] == 3 * [SAMPLES]


class Leaving(Net):
    """Leaves the rest of an epoch out."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 4 else None


def test_an_epoch_may_be_left_early() -> None:
    assert_same(Run(None, net=Leaving(halving())), Run("fixed", net=Leaving(halving())))
    run = Run(GROW, net=Leaving(), settings={"micro_batch_size": 5})
    assert len(run.net.windows) == 3


def test_the_loss_that_callbacks_get_is_divided_as_lightning_does_it() -> None:
    class Outputs(Callback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.losses.append(float(outputs["loss"]))

    outputs = Outputs()
    run = Run(Follow(lambda made: 12), callbacks=(outputs,), settings={"micro_batch_size": 4})
    counts: dict[tuple[int, int], int] = {}
    for epoch, step, _ in run.net.parts:
        counts[epoch, step] = counts.get((epoch, step), 0) + 1
    expected = [
        loss / counts[epoch, step]
        for loss, (epoch, step, _) in zip(run.net.losses, run.net.parts, strict=True)
    ]
    assert outputs.losses == pytest.approx(expected)
    assert {2, 3} <= set(counts.values())


# -- decisions --


def test_validation_losses_reach_the_next_decision(tmp_path: Path) -> None:
    run = Run(GROW, val_check_interval=0.5, settings={"log_dir": tmp_path})
    losses = [line.signals["val_loss"] for line in read_episode(tmp_path).records if line.signals]
    assert any(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
    assert run.net.validated_at


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'accuracy' after a validation, got .*val_loss"):
        Run(GROW, monitor="accuracy")


def test_gradient_noise_is_measured(tmp_path: Path) -> None:
    settings = {"log_dir": tmp_path, "noise_rate": 4.0}
    run = Run("noise-scale", samples=400, max_epochs=2, settings=settings)
    records = read_episode(tmp_path).records
    measured = [line for line in records if line.signals and line.signals["noise_trace"]]
    assert measured
    assert [sum(map(len, w)) for w in run.net.windows.values()] == [400, 400]


def test_damage_is_undone(tmp_path: Path) -> None:
    """Eight times the batch with eight times a rate that is large already."""
    run = Run(
        ScriptedPolicy((0.0, 0.0, 6.0)),
        net=Net(optimizer=lambda p: SGD(p, lr=0.2), dropout=0.0),
        samples=2000,
        max_epochs=1,
        settings={"lr_coupling": "linear", "guard": GuardConfig(), "log_dir": tmp_path},
    )
    events = [line.event for line in read_episode(tmp_path).records]
    assert "rollback" in events
    assert run.controller.components["rollbacks"] > 0
    assert torch.isfinite(run.net.weights).all()
    assert float(run.trainer.callback_metrics["val_loss"]) < 1.0


def test_the_default_policy_trains(tmp_path: Path) -> None:
    torch.manual_seed(5)
    callback = BatchSizeCallback(log_dir=tmp_path, target_loss=0.05, monitor="val_loss")
    run = Run(None, samples=600, callbacks=(callback,), max_epochs=4)
    assert [sum(map(len, w)) for w in run.net.windows.values()] == 4 * [600]
    log = read_episode(tmp_path)
    assert log.run["policy"] == "default"
    assert len(log.records) > 5


def test_settings_are_given_once() -> None:
    with pytest.raises(ConfigurationError, match="either config or single settings"):
        BatchSizeCallback(config=ControllerConfig(), cooldown=1)
