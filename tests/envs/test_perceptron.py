"""NumPy's perceptrons against PyTorch's, chunk by chunk."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from rlbatch.control.guard import GuardConfig
from rlbatch.envs.backend import BackendMaker, TorchBackend
from rlbatch.envs.live import LiveRun
from rlbatch.envs.objectives import Objective
from rlbatch.envs.perceptron import PerceptronBackend, fastest_backend
from rlbatch.envs.perceptron_tasks import is_perceptron_task
from rlbatch.envs.profiles import DeviceProfile
from rlbatch.envs.task import Task
from rlbatch.envs.tasks.table import (
    TensorTable,
    classification_loss,
    collate_table,
    multilayer_perceptron,
    regression_loss,
)
from rlbatch.errors import ConfigurationError
from rlbatch.signals.record import Coupling

PROFILE = DeviceProfile("test", launch_seconds=1e-3, sample_seconds=1e-5, update_seconds=1e-4)
SIZES = (8, 16, 3, 40, 1, 16, 16, 64, 8, 8)
FIELDS = (
    *("train_loss", "train_loss_std", "val_loss", "grad_sqr", "grad_sqr_se", "noise_trace"),
    *("gradient_cosine", "predicted_decrease", "total_cost", "total_samples", "rolled_back"),
    *("learning_rate_factor", "schedule_factor", "nonfinite_steps"),
)


def make_task(classes: int = 0, **changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)

    def table(rows: int) -> TensorTable:
        x = torch.randn(rows, 6, generator=generator)
        if classes:
            return TensorTable(x, (x[:, :classes]).argmax(dim=1))
        return TensorTable(x, x.sum(1).sin())

    task = Task(
        name="test",
        model=partial(multilayer_perceptron, 6, 12, 9, max(classes, 1)),
        train_set=table(120),
        val_set=table(50),
        loss=classification_loss if classes else regression_loss,
        optimizer=partial(AdamW, lr=3e-3, weight_decay=0.05),
        batch_size=8,
        target=1e-9,
        max_batch_size=120,
        collate=collate_table,
    )
    return replace(task, **changes)


def make_run(task: Task, backend: BackendMaker, **changes: Any) -> LiveRun:
    arguments: dict[str, Any] = {
        "seed": 3,
        "coupling": Coupling.SQRT,
        "profile": PROFILE,
        "objective": Objective(budget=1e9),
        "noise_rate": 2.0,
        "planned_steps": 60,
        **changes,
    }
    return LiveRun(task, backend=backend, **arguments)


def weights(run: LiveRun) -> np.ndarray:
    backend = run.backend
    if isinstance(backend, PerceptronBackend):
        return backend.weights
    assert isinstance(backend, TorchBackend)
    parts: list[np.ndarray] = []
    for layer in backend.model.modules():
        if isinstance(layer, nn.Linear):
            parts += [layer.weight.detach().numpy().T.ravel(), layer.bias.detach().numpy()]
    return np.concatenate(parts)


def cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(SGD, lr=0.05),
        partial(SGD, lr=0.02, momentum=0.9, weight_decay=0.01),
        partial(Adam, lr=3e-3, weight_decay=0.01),
        partial(AdamW, lr=3e-3, weight_decay=0.05),
    ],
)
@pytest.mark.parametrize("scheduler", [None, cosine])
def test_every_signal_and_weight_is_pytorchs(classes: int, optimizer: Any, scheduler: Any) -> None:
    task = make_task(classes, optimizer=optimizer, scheduler=scheduler)
    runs = [make_run(task, backend) for backend in (TorchBackend, PerceptronBackend)]
    for size in SIZES:
        slow, fast = (run.advance(size) for run in runs)
        for name in FIELDS:
            np.testing.assert_allclose(
                float(getattr(fast, name)),
                float(getattr(slow, name)),
                rtol=2e-3,
                atol=1e-6,
                err_msg=name,
            )
    np.testing.assert_allclose(weights(runs[1]), weights(runs[0]), rtol=1e-3, atol=1e-5)
    assert runs[0].steps == runs[1].steps > 20
    assert [v.steps for v in runs[0].validations] == [v.steps for v in runs[1].validations]


def test_a_chunk_that_explodes_is_rolled_back_exactly() -> None:
    run = make_run(
        make_task(optimizer=partial(SGD, lr=0.05)),
        PerceptronBackend,
        coupling=Coupling.LINEAR,
        guard=GuardConfig(),
    )
    for _ in range(8):
        run.advance(16)
    before = weights(run).copy()
    run.optimizer.param_groups[0]["lr"] = 1e6
    signals = run.advance(32)
    assert signals.rolled_back == 1.0
    np.testing.assert_array_equal(weights(run), before)
    assert run.batch_size == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"model": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))},
        {"model": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU())},
        {"model": lambda: multilayer_perceptron(6, 4, 1).double()},
        {"loss": partial(regression_loss)},
        {"optimizer": partial(RMSprop, lr=1e-3)},
        {"optimizer": partial(SGD, lr=0.1, momentum=0.9, nesterov=True)},
        {"optimizer": partial(AdamW, lr=1e-3, amsgrad=True)},
        {"collate": None},
    ],
)
def test_whatever_is_not_a_plain_perceptron_is_pytorchs(changes: dict[str, Any]) -> None:
    task = make_task(**changes)
    assert not is_perceptron_task(task)
    if "loss" not in changes and "collate" not in changes:
        with pytest.raises(ConfigurationError, match="no plain perceptron"):
            PerceptronBackend(task, 0)
    assert isinstance(fastest_backend(task, 0), TorchBackend)
    assert isinstance(fastest_backend(make_task(), 0), PerceptronBackend)
