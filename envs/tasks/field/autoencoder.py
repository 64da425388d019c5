"""Pictures of strokes through a narrow layer and back, by a perceptron."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW

from rlbatch.envs.tasks.field import images, schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.table import TensorTable, multilayer_perceptron, shuffled_split

TRAIN, VAL = 40_000, 768
SIDE = 12
CODE = 16


def model() -> nn.Module:
    """Return a fresh network (32,000 parameters)."""
    return nn.Sequential(
        multilayer_perceptron(SIDE**2, 64, CODE), multilayer_perceptron(CODE, 64, SIDE**2)
    )


def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Return the mean squared error a pixel, times 100."""
    (pictures,) = batch
    return 100.0 * mse_loss(model(pictures), pictures)


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pictures [N, 144]."""
    return shuffled_split((images.strokes(TRAIN + VAL, SIDE, seed=14).flatten(1),), VAL)


JOB = FieldJob(
    name="autoencoder",
    model=model,
    tables=tables,
    loss=loss,
    optimizer=partial(AdamW, lr=4e-3),
    scheduler=schedules.cosine(floor=0.1),
    batch_size=128,  # pictures
    epochs=4,
    target=2.07,
)
