"""Gradient noise of undivided Keras batches against every sample's own gradient, one at a time.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_steps import Steps
from rlbatch.integrations._keras_training import KerasRate, on_host
from rlbatch.signals import noise_scale

TENSORFLOW = keras.backend.backend() == "tensorflow"
ops: Any = keras.ops
layers: Any = keras.layers
N = 12

rng = np.random.default_rng(0)


def perceptron() -> Any:
    x = layers.Input((5,))
    y = layers.Dense(8, "tanh")(x)
    return keras.Model(x, layers.Dense(3)(y))


def convolutions() -> Any:
    """Plain, strided, grouped, dilated and causal ones, one of which has no bias."""
    x = layers.Input((7, 8, 2))
    y = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    y = layers.GroupNormalization(3)(y)
    y = layers.Conv2D(9, 3, padding="same", groups=3, activation="relu")(y)
    y = layers.Conv2D(4, (2, 3), dilation_rate=(1, 1), activation="tanh")(y)
    y = layers.Reshape((-1, 4))(y)
    y = layers.Conv1D(5, 2, padding="causal", dilation_rate=2)(y)
    y = layers.Conv1D(5, 3, padding="same", strides=2)(y)
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def transformer() -> Any:
    """Attention, outputs of a sequence, a layer used twice, a shift that is not trained."""
    x = layers.Input((4,), dtype="int32")
    y = layers.Embedding(7, 6)(x)
    first, second = layers.LayerNormalization(), layers.RMSNormalization()
    attention, wide, narrow = layers.MultiHeadAttention(2, 3), layers.Dense(9, "relu"), layers.Dense(6)
    for _ in range(2):
        z = first(y)
        y = layers.Add()([y, attention(z, z)])
        y = layers.Add()([y, narrow(wide(second(y)))])
    first.beta.trainable = False
    return keras.Model(x, layers.Dense(3)(y))


def inputs_of(model: Any, samples: int = N) -> Any:
    shape = model.input_shape[1:]
    if "int" in model.input.dtype:
        return rng.integers(0, 7, (samples, *shape)).astype("int32")
    return rng.normal(size=(samples, *shape)).astype("float32")


def labels_of(model: Any, samples: int = N) -> Any:
    return rng.integers(0, 3, (samples, *model.output_shape[1:-1])).astype("int32")


def gradient(model: Any, x: Any, y: Any, weight: Any = None) -> list[Any]:
    """The gradient of the model's loss of a batch, by the backend itself."""
    trained = model.trainable_weights
    if TENSORFLOW:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weight)
        found = tape.gradient(loss, [v.value for v in trained])
        return [np.array(tf.convert_to_tensor(g)) for g in found]
    import torch

    for v in trained:
        v.value.grad = None
    model.compute_loss(x, y, model(x, training=True), weight).backward()
    return [v.value.grad.detach().numpy().copy() for v in trained] if torch else []


def sample_gradients(model: Any, x: Any, y: Any, weight: Any = None) -> list[Any]:
    """Each sample's contribution to the gradient of a mean over samples, [samples, ...]."""
    rows = []
    for i in range(len(x)):
        one = slice(i, i + 1)
        part = None if weight is None else ops.convert_to_tensor(weight[one])
        rows.append(gradient(model, ops.convert_to_tensor(x[one]), ops.convert_to_tensor(y[one]), part))
    return [np.stack(parts) / len(x) for parts in zip(*rows, strict=True)]


def expected(rows: list[Any], weights: list[Any] | None = None) -> tuple[float, float, float]:
    """|G|^2, tr(Sigma) and cosine from contributions, by the sample variance."""
    samples = [len(part) * part.astype("float64") for part in rows]
    weights = [1.0] * len(rows) if weights is None else weights
    n = len(samples[0])
    trace = sum(float((p.var(0, ddof=1) * w).sum()) for p, w in zip(samples, weights, strict=True))
    square = sum(float((p.mean(0) ** 2 * w).sum()) for p, w in zip(samples, weights, strict=True))
    square -= trace / n
    return square, trace, square / (square + 2 * trace / n)


def measure(model: Any, data: tuple[Any, ...], drawn: Any = None, steps: Any = None) -> tuple[float, ...]:
    """|G|^2, tr(Sigma), cosine and the variance by one measured step."""
    steps = measured_steps(model) if steps is None else steps
    drawn = everything(steps) if drawn is None else drawn
    batch = tuple(ops.convert_to_tensor(part) for part in data)
    _, _, found = steps.measured(batch, drawn)
    small, big, cosine, variance = (float(value) for value in on_host(found))
    square, trace = noise_scale.estimate(small, big, 1, len(data[0]))
    return float(square), float(trace), cosine, variance


def measured_steps(model: Any) -> Steps:
    return Steps(model, SampleNoise(model, KerasRate(model)))


def everything(steps: Any) -> Any:
    drawn = np.zeros((len(steps._noise.layers), 3), np.float32)
    drawn[:, 0] = 1 << 20
    return drawn


def compiled(model: Any, optimizer: Any = None, **more: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.0) if optimizer is None else optimizer
    model.compile(**{"optimizer": optimizer, "loss": loss, **more})
    return model


MODELS = [perceptron, convolutions, transformer]


@pytest.mark.parametrize("make", MODELS)
def test_noise_is_that_of_the_samples_gradients(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model = compiled(make())
    x, y = inputs_of(model), labels_of(model)
    rows = sample_gradients(model, x, y)
    result = measure(model, (x, y))
    np.testing.assert_allclose(result[:3], expected(rows), rtol=2e-4)
