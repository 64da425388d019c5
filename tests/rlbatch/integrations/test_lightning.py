"""Controlled Lightning fits: what is delivered, the rest of the Trainer, decisions."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from rlbatch.control.config import ControllerConfig
from rlbatch.control.guard import GuardConfig
from rlbatch.errors import ConfigurationError
from rlbatch.integrations.lightning import BatchSizeCallback
from rlbatch.log.episode_log import read_episode
from rlbatch.policy.registry import FOR_EPOCHS
from rlbatch.testing import ScriptedPolicy
from rlbatch.testing.actuator_contract import ActuatorContract, Job, Step
from tests.rlbatch.integrations.lightning_runs import (
    BASE,
    CONFIG,
    EVERY_STEP,
    GROW,
    MARKS,
    SAMPLES,
    Linear,
    Net,
    Numbers,
    Rates,
    Rows,
    Run,
    assert_same,
    mean_of,
    powers,
)
from tests.rlbatch.integrations.steered import Follow, known_plan

pytestmark = MARKS

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
        settings: dict[str, Any] = {**CONFIG, **EVERY_STEP}
        recorder.callback = BatchSizeCallback(
            Follow(job.decide),
            micro_batch_size=job.micro_batch_size,
            max_batch_size=24,
            **settings,
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
    assert len({len(batch) for batch in net.batches}) > 10
    for found, expected in zip(net.gradients, mean_of(net.batches, size), strict=True):
        assert torch.allclose(found, expected, rtol=1e-6, atol=0)
    assert sorted(chain(*net.batches)) == sorted(3 * list(range(size)))


def test_the_last_partial_step_has_the_gradient_of_its_samples() -> None:
    """Lightning divides it by the number of batches of a whole one."""
    size = 26  # three batches of 8 and one of 2
    loader = DataLoader(Numbers(size), 2, shuffle=True)
    made = {}
    for policy in (None, "fixed"):
        made[policy] = net = Linear(size)
        Run(policy, net=net, loader=loader, val=False, accumulation=4, max_epochs=1)
    wrong = mean_of(made[None].batches, size)[-1] / 4
    assert torch.allclose(made[None].gradients[-1], wrong)  # if this is mended, so is this test
    found, expected = made["fixed"].gradients, mean_of(made["fixed"].batches, size)
    assert [len(batch) for batch in made["fixed"].batches] == [8, 8, 8, 2]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_smaller_batches_in_an_epoch_do_not_cut_it_short(workers: int) -> None:
    """A Trainer freezes the number of batches at the start: 280 of 800 samples were seen."""
    loader = DataLoader(Rows(400), 32, shuffle=True, num_workers=workers)
    run = Run(ScriptedPolicy((-2.0,)), loader=loader, max_epochs=2, val=False)
    for batches in run.net.batches.values():
        assert sorted(chain(*batches)) == list(range(400))
    assert run.net.sizes[:2] == [32, 32]
    assert set(run.net.sizes[12:]) == {8}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_log_names_the_steps_that_the_model_saw(tmp_path: Path, workers: int) -> None:
    run = Run(GROW, workers=workers, max_epochs=6, settings={"log_dir": tmp_path})
    sizes = run.net.sizes
    expected = [BASE] * len(sizes)
    for line in read_episode(tmp_path).records:
        if line.event == "decision" and line.effective_step is not None:
            rest = len(expected) - line.effective_step
            expected[line.effective_step :] = [line.batch_size] * rest
    ends = [sum(map(len, run.net.batches[epoch])) for epoch in range(6)]
    assert ends == 6 * [SAMPLES]
    number = 0
    for batches in run.net.batches.values():
        for batch in batches[:-1]:
            assert len(batch) == expected[number], number
            number += 1
        assert len(batches[-1]) <= expected[number]
        number += 1
    assert len(set(sizes)) > 3


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
    for batch in net.batches:
        gradient = mean_of([batch], size)[0]
        moved -= gradient * min(1.0, 0.05 / float(gradient.norm()))
    assert torch.allclose(run.net.weight.detach(), moved, rtol=1e-4)


def test_bf16_trains_in_parts() -> None:
    run = Run(GROW, precision="bf16-mixed", settings={"micro_batch_size": 5}, max_epochs=8)
    assert [sum(map(len, w)) for w in run.net.batches.values()] == 8 * [SAMPLES]
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
    assert [sum(map(len, w)) for w in run.net.batches.values()] == 3 * [SAMPLES]


class Leaving(Net):
    """Leaves the rest of an epoch out."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 4 else None


def test_an_epoch_may_be_left_early() -> None:
    assert_same(Run(None, net=Leaving(powers())), Run("fixed", net=Leaving(powers())))
    run = Run(GROW, net=Leaving(), settings={"micro_batch_size": 5})
    assert len(run.net.batches) == 3


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
    assert [sum(map(len, w)) for w in run.net.batches.values()] == [400, 400]


@pytest.mark.filterwarnings("ignore:rlbatch. the loss .* undone:RuntimeWarning")
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
    assert [sum(map(len, w)) for w in run.net.batches.values()] == 4 * [600]
    log = read_episode(tmp_path)
    assert log.run["policy"] == "default"
    assert len(log.records) > 5


@pytest.mark.parametrize(
    ("trainer", "planned"),
    [
        ({"max_epochs": 3}, 3 * SAMPLES),
        ({"max_epochs": 9, "max_steps": 15}, 1.5 * SAMPLES),  # 10 steps of 8 in an epoch
        ({"max_epochs": -1, "max_steps": 20}, 2 * SAMPLES),
    ],
)
def test_the_trainer_tells_how_long_the_run_is(
    tmp_path: Path, trainer: dict[str, Any], planned: float
) -> None:
    Run(None, callbacks=(BatchSizeCallback(log_dir=tmp_path / "a"),), **trainer)
    assert known_plan(tmp_path / "a") == (FOR_EPOCHS, planned)
    aiming = BatchSizeCallback(log_dir=tmp_path / "b", target_loss=0.05)
    Run(None, callbacks=(aiming,), **trainer)
    assert known_plan(tmp_path / "b") == ("default", "NaN")


def test_settings_are_given_once() -> None:
    with pytest.raises(ConfigurationError, match="either config or single settings"):
        BatchSizeCallback(config=ControllerConfig(), cooldown=1)
