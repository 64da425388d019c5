"""Gradient noise of undivided Keras batches against every sample's own gradient, one at a time.

A process has one backend: `test_keras.py` runs this file in a process for each.
"""

from __future__ import annotations

import os

import pytest

if "RLBATCH_TEST_KERAS" not in os.environ:
    pytest.skip("run by test_keras.py, once a backend", allow_module_level=True)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch.nn import functional

from rlbatch.integrations._keras_blocks import Draw
from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_steps import Steps
from rlbatch.integrations._keras_training import KerasRate, on_host
from rlbatch.integrations.keras import BatchSizeControl
from rlbatch.log.episode_log import read_episode
from rlbatch.signals import noise_scale
from rlbatch.testing import ScriptedPolicy

TENSORFLOW = keras.backend.backend() == "tensorflow"
ops: Any = keras.ops
layers: Any = keras.layers
N = 12

pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

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
    x = layers.Input((None,), dtype="int32")
    y = layers.Embedding(7, 6)(x)
    first, second = layers.LayerNormalization(), layers.RMSNormalization()
    attention, wide = layers.MultiHeadAttention(2, 3), layers.Dense(9, "relu")
    narrow = layers.Dense(6)
    for _ in range(2):
        z = first(y)
        y = layers.Add()([y, attention(z, z)])
        y = layers.Add()([y, narrow(wide(second(y)))])
    first.beta.trainable = False
    return keras.Model(x, layers.Dense(3)(y))


def inputs_of(model: Any, samples: int = N) -> Any:
    shape = [size or 4 for size in model.input_shape[1:]]
    if "int" in model.input.dtype:
        return rng.integers(0, 7, (samples, *shape)).astype("int32")
    return rng.normal(size=(samples, *shape)).astype("float32")


def labels_of(model: Any, samples: int = N) -> Any:
    return rng.integers(0, 3, (samples, *(n or 4 for n in model.output_shape[1:-1]))).astype(
        "int32"
    )


def gradient(model: Any, x: Any, y: Any, weight: Any = None) -> list[Any]:
    """The gradient of the model's loss of a batch, by the backend itself."""
    trained = model.trainable_weights
    if TENSORFLOW:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weight)
        found = tape.gradient(loss, [v.value for v in trained])
        return [np.array(tf.convert_to_tensor(g)) for g in found]
    for v in trained:
        v.value.grad = None
    model.compute_loss(x, y, model(x, training=True), weight).backward()
    return [v.value.grad.detach().numpy().copy() for v in trained]


def sample_gradients(model: Any, x: Any, y: Any, weight: Any = None) -> list[Any]:
    """Each sample's contribution to the gradient of a mean over samples, [samples, ...]."""
    rows = []
    for i in range(len(x)):
        one = slice(i, i + 1)
        part = None if weight is None else ops.convert_to_tensor(weight[one])
        sample = ops.convert_to_tensor(x[one]), ops.convert_to_tensor(y[one])
        rows.append(gradient(model, *sample, part))
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


def measure(
    model: Any, data: tuple[Any, ...], drawn: Any = None, steps: Any = None
) -> tuple[float, ...]:
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
    drawn = np.zeros((len(steps.noise.layers), 3), np.float32)
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


def test_samples_may_weigh_differently_and_weights_be_penalised() -> None:
    keras.utils.set_random_seed(0)
    x = layers.Input((5,))
    y = layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.5))(x)
    model = compiled(keras.Model(x, layers.Dense(3)(y)))
    data = inputs_of(model), labels_of(model), rng.uniform(0.0, 3.0, N).astype("float32")
    rows = sample_gradients(model, *data)
    np.testing.assert_allclose(measure(model, data)[:3], expected(rows), rtol=2e-4)


def test_adam_measures_in_its_own_metric() -> None:
    keras.utils.set_random_seed(0)
    model = compiled(perceptron(), keras.optimizers.Adam(0.1, epsilon=1e-4))
    x, y = inputs_of(model), labels_of(model)
    steps = measured_steps(model)
    assert steps.noise.draw(N, "0") is None  # there is no second moment yet
    batch = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    for _ in range(3):
        steps.whole(batch)
    rate = KerasRate(model)
    steps = Steps(model, SampleNoise(model, rate))
    moments = [np.array(on_host(v)) for v in model.optimizer._velocities]
    weights = [np.array(on_host(v)) for v in model.trainable_weights]
    rows = sample_gradients(model, x, y)
    metric = [1.0 / (np.sqrt(v / (1.0 - 0.999**3)) + 1e-4) for v in moments]
    result = measure(model, (x, y), steps=steps)
    np.testing.assert_allclose(result[:3], expected(rows, metric), rtol=5e-4)
    moved = [on_host(v) - w for v, w in zip(model.trainable_weights, weights, strict=True)]
    assert all(np.abs(step).max() > 0.0 for step in moved)  # it is a step as any other


def test_blocks_of_all_offsets_make_up_the_layer() -> None:
    """Every element belongs to the block of one pair of offsets: their mean is exact."""
    keras.utils.set_random_seed(0)
    model = compiled(convolutions())
    data, steps = (inputs_of(model), labels_of(model)), measured_steps(model)
    names = [layer.name for layer in steps.noise.layers]
    grouped = next(
        row
        for row, name in enumerate(names)
        if steps.noise.layers[row].name == name
        and getattr(steps.noise.layers[row], "groups", 1) == 3
        and hasattr(steps.noise.layers[row], "kernel_size")
    )
    drawn = np.zeros((len(names), 3), np.float32)
    drawn[grouped] = 1 << 20, 0.0, 0.0
    whole = measure(model, data, drawn, steps)
    assert whole[3] > 0.0
    found = []
    for first in (0.25, 0.75):
        for second in (1 / 6, 1 / 2, 5 / 6):
            drawn[grouped] = 40, first, second
            found.append(measure(model, data, drawn, steps)[:2])
    assert len({trace for _, trace in found}) > 1
    np.testing.assert_allclose(np.mean(found, 0), whole[:2], rtol=1e-3)


def test_slices_leave_about_so_many_elements() -> None:
    for dims, elements in (((64, 128), 100.0), ((3, 500), 60.0), ((40,), 7.0), ((5, 5), 1e6)):
        kept: list[float] = []
        for place in np.linspace(0.01, 0.99, 9, dtype=np.float32):
            row = np.array([elements, place, place], np.float32)
            draw = Draw(ops.convert_to_tensor(row) if TENSORFLOW else row)
            slices, strides = draw.slices(dims, draw.elements)
            lengths = [
                len(range(int(s.start), size, int(s.step)))
                for s, size in zip(slices, dims, strict=True)
            ]
            assert all(
                int(s.start) < int(stride) for s, stride in zip(slices, strides, strict=True)
            )
            kept.append(float(np.prod(lengths)))
        most = min(elements, float(np.prod(dims)))
        assert 0.4 * most <= np.mean(kept) <= most + 1e-6


def normalised_rows(model: Any, x: Any, y: Any) -> list[Any]:
    """Contributions by each sample's outputs, from weights that each sample has for itself."""
    values = [torch.tensor(np.array(on_host(v))) for v in model.trainable_weights]
    own = [v.expand(N, *v.shape).clone().requires_grad_() for v in values]
    kernel, bias, gamma, beta, head, last = own
    hidden = torch.einsum("ni,nio->no", torch.tensor(x), kernel) + bias
    variance = hidden.var(0, unbiased=False)
    hidden = (hidden - hidden.mean(0)) / (variance + 1e-3).sqrt() * gamma + beta
    output = torch.einsum("ni,nio->no", hidden.tanh(), head) + last
    functional.cross_entropy(output, torch.tensor(y).long()).backward()
    return [part.grad.numpy() for part in own if part.grad is not None]


def test_batch_normalisation_counts_the_outputs_of_each_sample() -> None:
    keras.utils.set_random_seed(0)
    x = layers.Input((5,))
    y = layers.Activation("tanh")(layers.BatchNormalization()(layers.Dense(8)(x)))
    model = compiled(keras.Model(x, layers.Dense(3)(y)))
    data = inputs_of(model), labels_of(model)
    rows = normalised_rows(model, *data)
    assert len(rows) == 6
    np.testing.assert_allclose(measure(model, data)[:3], expected(rows), rtol=1e-3)


def test_half_precision_with_a_scaled_loss() -> None:
    keras.utils.set_random_seed(0)
    plain = compiled(perceptron())
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = perceptron()
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(plain.get_weights())
    compiled(half, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0)))
    data = inputs_of(plain), labels_of(plain)
    rows = sample_gradients(plain, *data)
    np.testing.assert_allclose(measure(half, data)[:3], expected(rows), rtol=3e-2)


class Turned(keras.layers.Layer):
    """Puts places and samples on one axis, or takes some places."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def call(self, x: Any) -> Any:
        if self.how == "take":
            return ops.take(x, ops.convert_to_tensor([2, 0]), axis=1)
        return ops.reshape(x, (-1, 5) if self.how == "flat" else (-1, 4, 8))

    def compute_output_shape(self, shape: Any) -> Any:
        return {"take": (None, 2, 8), "flat": (None, 5), "back": (None, 4, 8)}[self.how]


def test_layers_that_see_no_samples_apart_count_for_nothing() -> None:
    keras.utils.set_random_seed(0)
    x = layers.Input((4, 5))
    y = Turned("back")(layers.Dense(8, "tanh")(Turned("flat")(x)))
    model = compiled(keras.Model(x, layers.Dense(3)(Turned("take")(y))))
    data = inputs_of(model), rng.integers(0, 3, (N, 2)).astype("int32")
    rows = sample_gradients(model, *data)
    norms = [float((part.sum(0) ** 2).sum()) for part in rows]
    square, trace, cosine = expected(rows[2:])
    scale = sum(norms) / sum(norms[2:])
    wanted = scale * square, scale * trace, cosine
    np.testing.assert_allclose(measure(model, data)[:3], wanted, rtol=1e-3)


class Twice(keras.Model):
    def train_step(self, data: Any) -> Any:
        super().train_step(data)
        return super().train_step(data)


def test_what_cannot_be_measured_is_not() -> None:
    x = layers.Input((5,))
    twice = compiled(Twice(x, layers.Dense(3)(x)))
    data = inputs_of(twice), labels_of(twice)
    assert measure(twice, data)[3] == -1.0
    compact = compiled(perceptron(), jit_compile=True)
    assert measured_steps(compact).noise.draw(N, "0") is None
    steps = measured_steps(compiled(perceptron()))
    assert steps.noise.draw(1, "0") is None
    drawn = steps.noise.draw(N, "0")
    assert drawn is not None
    np.testing.assert_array_equal(drawn, steps.noise.draw(N, "0"))
    shared = perceptron()
    shared.layers[1]._trainable_variables.append(shared.layers[2]._trainable_variables[0])
    assert not measured_steps(compiled(shared)).noise.layers


class Shaken(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x))


@pytest.mark.skipif(not TENSORFLOW, reason="of TensorFlow's random operations")
def test_steps_that_draw_by_their_place_in_a_trace_are_known() -> None:
    """Another trace of them draws other numbers; Keras's own layers draw by seeds."""
    for layer, is_one in ((Shaken(), True), (layers.Dropout(0.3), False)):
        x = layers.Input((5,))
        model = compiled(keras.Model(x, layers.Dense(3)(layers.GaussianNoise(0.1)(layer(x)))))
        steps = measured_steps(model)
        steps.whole(
            (ops.convert_to_tensor(inputs_of(model)), ops.convert_to_tensor(labels_of(model)))
        )
        assert steps.draws_by_place is is_one


class Noisy(ScriptedPolicy):
    """A script that wants the gradient noise measured."""

    needs_gradient_noise = True


def mixed() -> Any:
    """Convolution, table, normalisation, spectral normalisation and dropout at once."""
    keras.utils.set_random_seed(0)
    image, words = layers.Input((6, 6, 2)), layers.Input((4,), dtype="int32")
    y = layers.Conv2D(6, 3, activation="relu", padding="same")(image)
    y = layers.Flatten()(layers.BatchNormalization()(layers.Conv2D(3, 3, strides=2)(y)))
    z = layers.LayerNormalization()(layers.Embedding(7, 5)(words))
    z = layers.Flatten()(layers.Dense(4, "gelu")(z))
    spectral = layers.SpectralNormalization(layers.Dense(9, "relu"))
    y = layers.Dropout(0.3)(spectral(layers.Concatenate()([y, z])))
    return compiled(keras.Model([image, words], layers.Dense(3)(y)), keras.optimizers.Adam(0.01))


def test_a_measured_run_is_the_unmeasured_one_bit_for_bit(tmp_path: Path) -> None:
    images = rng.normal(size=(70, 6, 6, 2)).astype("float32")
    words = rng.integers(0, 7, (70, 4)).astype("int32")
    labels = rng.integers(0, 3, 70).astype("int32")

    def trained(name: str, rate: float) -> tuple[list[Any], BatchSizeControl]:
        model = mixed()
        control = BatchSizeControl(
            8,
            Noisy((1.0, -0.5)),
            cost="samples",
            max_batch_size=32,
            max_chunk_steps=4,
            noise_rate=rate,
            log_dir=tmp_path / name,
        )
        model.fit(
            control.dataset([images, words], labels), epochs=2, verbose=0, callbacks=[control]
        )
        return model.get_weights(), control

    plain, without = trained("plain", 0.0)
    measured, control = trained("measured", np.inf)
    for left, right in zip(plain, measured, strict=True):
        np.testing.assert_array_equal(left, right)
    traces = control.components["traces"]
    assert without.components["traces"]["measured"] == 0
    assert traces["measured"] == (1 if TENSORFLOW else control.steps - 2)
    signals = [r.signals for r in read_episode(tmp_path / "measured").records if r.event != "end"]
    known = [s for s in signals if np.isfinite(s["noise_trace"] or np.nan)]
    assert len(known) >= len(signals) - 2
    assert all(np.asarray(s["noise_trace_se"]) > 0.0 for s in known)
