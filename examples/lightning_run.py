"""Train a small network with Lightning's Trainer and an adaptive batch size.

    python examples/lightning_run.py

No network and some seconds on a processor; the digits are scikit-learn's.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from rlbatch.integrations.lightning import BatchSizeCallback

BATCH, TRAINED_ON, TARGET = 32, 1437, 0.4


class Digits(LightningModule):
    """A perceptron of one hidden layer."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Return the loss of a batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        """Log the loss of a batch."""
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("val_loss", loss, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Return Adam, its rate falling by steps of the user's batch size."""
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9998)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    """Train to the target and say what the batch size did."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    digits: Any = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16.0
    data = TensorDataset(images, torch.tensor(digits.target))
    train_set = Subset(data, range(TRAINED_ON))
    val_set = Subset(data, range(TRAINED_ON, len(data)))
    callback = BatchSizeCallback(target_loss=TARGET)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=60,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback, EarlyStopping("val_loss", stopping_threshold=TARGET)],
        )
        trainer.fit(
            Digits(),
            DataLoader(train_set, BATCH, shuffle=True),
            DataLoader(val_set, len(val_set)),
        )
    controller = callback.controller
    if controller is None:
        raise RuntimeError("The fit made no controller.")
    epochs, rest = divmod(controller.samples_seen, TRAINED_ON)
    print(
        f"{trainer.global_step} steps over {epochs} x {TRAINED_ON:,} + {rest} samples, "
        f"batch size at the end {controller.batch_size}, "
        f"validation loss {float(trainer.callback_metrics['val_loss']):.3f}"
    )


if __name__ == "__main__":
    main()
