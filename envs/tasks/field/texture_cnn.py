"""Which texture a coloured picture shows, by a residual CNN with momentum."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.optim import SGD

from rlbatch.envs.tasks.field import images, schedules
from rlbatch.envs.tasks.field.job import FieldJob
from rlbatch.envs.tasks.field.layers import convolution
from rlbatch.envs.tasks.table import TensorTable, classification_loss, shuffled_split

TRAIN, VAL = 30_000, 768
SIDE, CLASSES, NOISE = 8, 20, 2.0
WIDTH = 12


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self) -> None:
        """Make the convolutions."""
        super().__init__()
        self.body = nn.Sequential(
            convolution(WIDTH, WIDTH),
            nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return what has the shape of `x`."""
        return (x + self.body(x)).relu()


def model() -> nn.Module:
    """Return a fresh network (7,800 parameters)."""
    return nn.Sequential(
        convolution(3, WIDTH, stride=2),
        Residual(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(WIDTH * (SIDE // 2) ** 2, CLASSES),
    )


def tables() -> tuple[TensorTable, TensorTable]:
    """Return training and validation pictures [N, 3, 8, 8] with their classes [N]."""
    return shuffled_split(images.textures(TRAIN + VAL, SIDE, CLASSES, NOISE, seed=21), VAL)


JOB = FieldJob(
    name="texture-cnn",
    model=model,
    tables=tables,
    loss=classification_loss,
    optimizer=partial(SGD, lr=0.03, momentum=0.9, weight_decay=5e-4),
    scheduler=schedules.cosine(warm_up=0.03),
    batch_size=64,  # pictures
    epochs=3,
    target=1.92,
)
