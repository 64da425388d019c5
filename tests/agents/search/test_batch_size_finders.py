"""The largest micro-batch beside those of Lightning and Accelerate, under a limit in bytes.

A gauge counts what a pass saves and raises the error of a full device; all three search with the
same model. The slow reference tries every size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rlbatch.agents.search.largest import find_largest
from rlbatch.agents.search.passes import PassRunner
from rlbatch.control.memory import HostGauge
from rlbatch.envs.task import Task, resolve_task

LIMIT = 300_000


@contextmanager
def full_device(gauge: HostGauge) -> Iterator[None]:
    """Say of a used-up limit what CUDA says, word for word: the others look for these words."""
    try:
        with gauge.watch():
            yield
    except torch.OutOfMemoryError as error:
        raise RuntimeError("CUDA out of memory. Tried to allocate more.") from error


@pytest.fixture(scope="module")
def task() -> Task:
    return resolve_task("digits-cnn")


@pytest.fixture(scope="module")
def exact(task: Task) -> int:
    """Return the largest size that fits, by trying all of them."""
    runner, gauge = PassRunner(task), HostGauge(LIMIT)
    size = 1
    while runner.bytes_needed(size, gauge) is not None:
        size += 1
    return size - 1


def ours(task: Task, margin: float) -> tuple[int, int]:
    runner, gauge = PassRunner(task), HostGauge(LIMIT)
    failures = 0

    def needed(size: int) -> int | None:
        nonlocal failures
        found = runner.bytes_needed(size, gauge)
        failures += found is None
        return found

    return find_largest(needed, gauge.free(), 100_000, margin).size, failures


def test_without_a_margin_it_is_the_exact_one(task: Task, exact: int) -> None:
    assert exact > 64
    assert ours(task, 0.0)[0] == exact


def test_with_a_margin_nothing_fails_and_a_tenth_stays_free(task: Task, exact: int) -> None:
    size, failures = ours(task, 0.1)
    runner, gauge = PassRunner(task), HostGauge(LIMIT)

    assert failures == 0
    assert 0.85 * exact < size < exact
    assert (runner.bytes_needed(size, gauge) or 0) <= 0.9 * LIMIT
    assert (runner.bytes_needed(size + 1, gauge) or 0) > 0.9 * LIMIT


def test_accelerate_halves_down_to_a_power_of_two_below(task: Task, exact: int) -> None:
    from accelerate.utils.memory import find_executable_batch_size

    runner, gauge, tried = PassRunner(task), HostGauge(LIMIT), list[int]()

    @find_executable_batch_size(starting_batch_size=1024)
    def train(batch_size: int) -> int:
        tried.append(batch_size)
        with full_device(gauge):
            runner.backward(runner.batch(batch_size))
        return batch_size

    found: int = train()  # pyright: ignore[reportCallIssue]

    assert found <= exact < 2 * found
    assert found <= ours(task, 0.0)[0]
    assert len(tried) > 1  # all but the last of them failed


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_lightnings_finder_agrees(task: Task, exact: int, mode: str, tmp_path: Path) -> None:
    import lightning
    from lightning.pytorch.tuner.tuning import Tuner

    gauge = HostGauge(LIMIT)
    samples = [task.train_set[index % 1400] for index in range(4096)]
    data = TensorDataset(*(torch.stack([one[k] for one in samples]) for k in range(2)))

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model: nn.Module = task.model()
            self.batch_size = 2

        def training_step(self, batch: Any, index: int) -> Tensor:
            with full_device(gauge):
                return task.loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer(self.parameters())

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(data, batch_size=self.batch_size, drop_last=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of loaders without workers and of missing loggers
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        found = Tuner(trainer).scale_batch_size(Module(), mode=mode, steps_per_trial=1, margin=0.0)

    assert found is not None
    if mode == "power":
        assert found <= exact < 2 * found
    else:
        assert abs(found - exact) <= 1
