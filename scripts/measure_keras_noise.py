"""What a step that measures gradient noise costs in Keras, over a plain one.

    KERAS_BACKEND=tensorflow python scripts/measure_keras_noise.py
    KERAS_BACKEND=torch python scripts/measure_keras_noise.py --rounds 30

Both kinds of steps are made in turns, of the same model in the same process. Time is that of the
process on all its threads, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from rlbatch.integrations._keras_noise import SampleNoise
from rlbatch.integrations._keras_steps import Steps
from rlbatch.integrations._keras_training import KerasRate, on_host

layers: Any = keras.layers


def perceptron() -> Any:
    x = layers.Input((64,))
    y = layers.Dense(256, "relu")(layers.Dense(256, "relu")(x))
    return keras.Model(x, layers.Dense(10)(y))


def convolutional() -> Any:
    x = y = layers.Input((32, 32, 3))
    for channels in (32, 64, 128):
        y = layers.Conv2D(channels, 3, padding="same", use_bias=False)(y)
        y = layers.MaxPooling2D()(layers.Activation("relu")(layers.BatchNormalization()(y)))
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling2D()(y)))


def transformer() -> Any:
    x = layers.Input((64,), dtype="int32")
    y = layers.Embedding(1000, 128)(x)
    for _ in range(2):
        z = layers.LayerNormalization()(y)
        y = layers.Add()([y, layers.MultiHeadAttention(4, 32)(z, z)])
        z = layers.Dense(512, "gelu")(layers.LayerNormalization()(y))
        y = layers.Add()([y, layers.Dense(128)(z)])
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))


MODELS: dict[str, Callable[[], Any]] = {
    "MLP": perceptron,
    "CNN": convolutional,
    "transformer": transformer,
}


def measure(make: Callable[[], Any], batch_size: int, rounds: int) -> tuple[float, float, float]:
    """Return milliseconds of a plain step and of a measured one, and the median of their ratios."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    shape = (batch_size, *model.input_shape[1:])
    words = "int" in model.input.dtype
    x = rng.integers(0, 1000, shape).astype("int32") if words else rng.normal(size=shape)
    batch = tuple(
        keras.ops.convert_to_tensor(part)
        for part in (x if words else x.astype("float32"), rng.integers(0, 10, batch_size))
    )
    Steps(model, SampleNoise(model, KerasRate(model))).whole(batch)  # Adam has moments now
    noise = SampleNoise(model, KerasRate(model))
    steps, times = Steps(model, noise), np.zeros((rounds, 2))
    for kind in range(2):
        _timed(steps, noise, batch, kind, "warm-up")
    for place in range(rounds):
        for kind in (0, 1) if place % 2 else (1, 0):
            times[place, kind] = _timed(steps, noise, batch, kind, str(place))
    plain, measured = 1e3 * np.median(times, axis=0)
    return float(plain), float(measured), float(np.median(times[:, 1] / times[:, 0]))


def _timed(steps: Any, noise: Any, batch: Any, kind: int, seed: str) -> float:
    start = time.process_time()
    found = steps.measured(batch, noise.draw(len(batch[1]), seed)) if kind else steps.whole(batch)
    on_host(found[-1])  # waits for it
    return time.process_time() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, batch size {given.batch_size}")
    print("| model | plain step | measured step | ratio |\n|---|---|---|---|")
    for name in given.model:
        plain, measured, ratio = measure(MODELS[name], given.batch_size, given.rounds)
        print(f"| {name} | {plain:.1f} ms | {measured:.1f} ms | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
