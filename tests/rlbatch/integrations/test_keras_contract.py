"""Keras's `fit` under the contract of all loops, on the backend that KERAS_BACKEND names.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor

from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.testing.actuator_contract import Job, LoopContract, Step

ops: Any = keras.ops
Callback: Any = keras.callbacks.Callback
Layer: Any = keras.layers.Layer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _in_float64() -> Iterator[None]:
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # which has not followed since it was first asked for
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


class Noting(Layer):
    """Notes the numbers of the samples, in their last column, of each pass that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[list[int]] = []

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            numbers = ops.convert_to_numpy(x)[:, -1]
            self.passes.append([round(number) for number in numbers.tolist()])
        return x[:, :-1]

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], shape[-1] - 1)


def model_of(job: Job) -> Any:
    """Return the job's model in Keras; eager, so that a pass can be seen."""
    first, last = keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)
    model: Any = keras.Sequential([keras.Input((4,), dtype="float64"), Noting(), first, last])
    model.set_weights([weight.detach().numpy().T for weight in job.model.parameters()])
    optimizer = keras.optimizers.SGD(job.learning_rate)
    model.compile(optimizer, "mse", run_eagerly=True, jit_compile=False)
    return model


def weights_of(model: Any) -> list[Tensor]:
    arrays = (ops.convert_to_numpy(weight) for weight in model.trainable_weights)
    return [torch.tensor(np.array(array).T) for array in arrays]


def data_of(job: Job) -> tuple[Any, Any]:
    numbers = np.arange(len(job.dataset), dtype="float64")[:, None]
    return np.concatenate([job.dataset.inputs.numpy(), numbers], 1), job.dataset.targets.numpy()


class InterruptedRunError(Exception):
    pass


class Recorder(Callback):
    def __init__(self, control: BatchSizeControl | None = None, stop_after: int = 0) -> None:
        super().__init__()
        self.control, self.stop_after = control, stop_after
        self.steps: list[Step] = []
        self.seen = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.stop_after and len(self.steps) == self.stop_after:
            raise InterruptedRunError
        self.size = 0 if self.control is None else self.control.batch_size

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        passes = self.model.layers[0].passes
        parts, self.seen = passes[self.seen :], len(passes)
        samples = None if self.control is None else self.control.samples_seen
        step = Step(self.size, self.epoch, parts, weights_of(self.model), samples)
        self.steps.append(step)


def train_job(job: Job, folder: Path | None = None, stop_after: int = 0) -> list[Step]:
    control = BatchSizeControl(job.batch_size, job.policy, **job.settings)
    recorder = Recorder(control, stop_after)
    backup = [] if folder is None else [control.backup(folder, 1)]
    # An order of its own is drawn for each epoch, whatever the global generators have drawn.
    data = control.dataset(*data_of(job), seed=3, shuffle=not job.fixed)
    callbacks = [control, recorder, *backup]
    try:
        model_of(job).fit(data, epochs=job.epochs, verbose=0, callbacks=callbacks)
    except InterruptedRunError:
        control.detach()
    return recorder.steps


class TestContract(LoopContract):
    tolerance = 1e-4  # Keras multiplies float64 matrices in float32 on torch

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "backup"

    def train(self, job: Job) -> list[Step]:
        return train_job(job)

    def plain(self, job: Job) -> list[list[Tensor]]:
        model, recorder = model_of(job), Recorder()
        x, y = data_of(job)
        more: dict[str, Any] = {"shuffle": False, "verbose": 0, "callbacks": [recorder]}
        model.fit(x, y, job.batch_size, epochs=job.epochs, **more)
        return [step.parameters for step in recorder.steps]

    def resume(self, job: Job, after: int) -> list[Step]:
        steps = train_job(job, self.folder, after)
        return steps + train_job(self.job(0), self.folder)
