"""Train a small network on handwritten digits by Keras's fit with an adaptive batch size.

    KERAS_BACKEND=tensorflow python examples/keras_run.py
    KERAS_BACKEND=torch python examples/keras_run.py

No network and some seconds on a processor; the digits are scikit-learn's.
"""

from __future__ import annotations

import argparse
from typing import Any

import keras
from sklearn.datasets import load_digits

from rlbatch.integrations.keras import BatchSizeControl

BATCH, TRAINED_ON, TARGET = 32, 1437, 0.4

Callback: Any = keras.callbacks.Callback


class StopAtTarget(Callback):
    """Ends a run whose validation loss is good enough."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Compare."""
        self.model.stop_training = logs["val_loss"] <= TARGET


def main() -> None:
    """Train to the target, or these epochs, and say what the batch size did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="default")
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    digits: Any = load_digits()
    images, labels = (digits.data / 16.0).astype("float32"), digits.target
    layers: Any = keras.layers
    model: Any = keras.Sequential(
        [keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(10)]
    )
    rate: Any = keras.optimizers.schedules.ExponentialDecay(3e-3, 1000, 0.8)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    control = BatchSizeControl(BATCH, arguments.policy, target_loss=TARGET)
    history = model.fit(
        control.dataset(images[:TRAINED_ON], labels[:TRAINED_ON]),
        epochs=arguments.epochs,
        validation_data=(images[TRAINED_ON:], labels[TRAINED_ON:]),
        callbacks=[control, StopAtTarget()],
        shuffle=False,  # the data set comes shuffled
        verbose=0,
    ).history
    epochs, rest = divmod(control.samples_seen, TRAINED_ON)
    sizes = history["batch_size"]
    print(
        f"Keras on {keras.backend.backend()}, samples seen: {epochs} x {TRAINED_ON:,} + {rest}, "
        f"batch size {min(sizes)} to {max(sizes)}, validation loss "
        f"{history['val_loss'][-1]:.3f}, accuracy {history['val_accuracy'][-1]:.1%}"
    )


if __name__ == "__main__":
    main()
