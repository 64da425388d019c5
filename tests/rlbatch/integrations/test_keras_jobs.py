"""Jobs as people write them: under the policy `fixed` each is the plain `fit`, bit for bit.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from typing import Any

import keras
import numpy as np

from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.testing import ScriptedPolicy

layers: Any = keras.layers
optimizers: Any = keras.optimizers
SAMPLES, BASE = 44, 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

rng = np.random.default_rng(0)
X = rng.normal(size=(SAMPLES, 6)).astype("float32")
Z = rng.normal(size=(SAMPLES, 3)).astype("float32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")
KINDS = rng.integers(0, 3, SAMPLES).astype("int32")


class Noisy(ScriptedPolicy):
    """A script that wants the gradient noise measured."""

    needs_gradient_noise = True


def cross_entropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two_outputs() -> Any:
    x = layers.Input((6,))
    hidden = layers.Dense(8, "tanh")(x)
    outputs = {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(3, name="b")(hidden)}
    model = keras.Model(x, outputs)
    loss, weights = {"a": "mse", "b": cross_entropy()}, {"a": 0.3, "b": 2.0}
    model.compile(optimizers.Adam(0.01), loss, loss_weights=weights)
    return model, (X, {"a": Y, "b": KINDS}), {}


def lists_of_arrays() -> Any:
    """Several inputs and targets in lists, as `fit` takes them."""
    first, second = layers.Input((6,)), layers.Input((3,))
    hidden = layers.Dense(8, "tanh")(layers.Concatenate()([first, second]))
    outputs = [layers.Dense(1, name="a")(hidden), layers.Dense(3, name="b")(hidden)]
    model = keras.Model([first, second], outputs)
    model.compile(optimizers.SGD(0.1, momentum=0.9), ["mse", cross_entropy()])
    return model, ([X, Z], [Y, KINDS]), {}


def averages_and_frozen_weights() -> Any:
    x = layers.Input((6,))
    frozen = layers.Dense(8, "relu", trainable=False)(x)
    model = keras.Model(x, layers.Dense(1, kernel_constraint="non_neg")(frozen))
    average = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}
    model.compile(optimizers.Adam(0.01, clipvalue=0.01, **average), "mse")
    return model, (X, Y), {}


def plateaus() -> Any:
    """Validations by which rates fall, weights are kept and the training stops."""
    x = layers.Input((6,))
    hidden = layers.Dropout(0.2)(layers.BatchNormalization()(layers.Dense(8, "relu")(x)))
    model = keras.Model(x, layers.Dense(1, activity_regularizer="l2")(hidden))
    model.compile(optimizers.AdamW(0.01), "mse")
    best = {"patience": 1, "min_delta": 10.0}
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=10.0),
        keras.callbacks.EarlyStopping(restore_best_weights=True, **best),
    ]
    return model, (X, Y), {"validation_data": (X, Y), "callbacks": callbacks}


def recurrent() -> Any:
    model = keras.Sequential([layers.Input((6,)), layers.Reshape((3, 2))])
    model.add(layers.TimeDistributed(layers.Dense(4)))
    model.add(layers.LSTM(3))
    model.add(layers.Dense(1))
    model.compile("rmsprop", "mse")
    return model, (X, Y), {}


JOBS = [two_outputs, lists_of_arrays, averages_and_frozen_weights, plateaus, recurrent]


@pytest.mark.parametrize("make", JOBS)
def test_a_job_is_the_plain_one(make: Any) -> None:
    def trained(policy: Any = None) -> tuple[Any, Any, Any]:
        keras.utils.set_random_seed(0)
        model, data, more = make()
        more = {"epochs": 2, "verbose": 0, "shuffle": False, **more}
        if policy is None:
            return model, model.fit(*data, batch_size=BASE, **more).history, None
        settings: Any = {"cost": "samples", "max_batch_size": 32, "max_chunk_steps": 4}
        control = BatchSizeControl(BASE, policy, noise_rate=np.inf, **settings)
        more["callbacks"] = [control, *more.get("callbacks", [])]
        history = model.fit(control.dataset(*data, shuffle=False), **more).history
        return model, history, control

    plain, expected, _ = trained()
    fixed, history, _ = trained("fixed")
    for left, right in zip(plain.get_weights(), fixed.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6, err_msg=name)

    _, history, control = trained(Noisy((1.0, 0.0, -1.0, 1.0)))
    assert control.samples_seen == SAMPLES * len(history["loss"])
    assert control.components["traces"]["measured"] > 0
    assert np.isfinite(history["loss"]).all()


def test_a_run_that_another_callback_resumes_is_said() -> None:
    """Keras's BackupAndRestore restores weights and the epoch, and nothing of the controller."""
    x = layers.Input((6,))
    model: Any = keras.Model(x, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    control = BatchSizeControl(BASE, "fixed")
    data = control.dataset(X, Y)
    with pytest.warns(RuntimeWarning, match=r"control\.backup\(folder\) in the place"):
        model.fit(data, epochs=2, initial_epoch=1, verbose=0, callbacks=[control])
    model.fit(data, epochs=3, initial_epoch=2, verbose=0, callbacks=[control])
    assert control.samples_seen == 2 * SAMPLES
