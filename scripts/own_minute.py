"""A task of a minute, as a user might have it: a longer one for `rlbatch train --task`.

rlbatch train --task scripts/own_minute.py:pendulums --minutes 120 --out DIR
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from rlbatch.envs import Task

_STEPS, _INTERVAL = 48, 0.25


def _swing(constants: torch.Tensor) -> torch.Tensor:
    """Return the angles, (samples, _STEPS), of pendulums that are driven.

    Args:
        constants: (samples, 4): length, damping, strength and frequency of the drive.
    """
    length, damping, strength, frequency = constants.unbind(1)
    angle, speed = torch.full_like(length, 0.5), torch.zeros_like(length)
    angles, time, inner = [], 0.0, 10
    for _ in range(_STEPS):
        for _ in range(inner):
            drive = strength * torch.cos(frequency * time)
            speed = speed + _INTERVAL / inner * (drive - damping * speed - angle.sin() / length)
            angle = angle + _INTERVAL / inner * speed
            time += _INTERVAL / inner
        angles.append(angle)
    return torch.stack(angles, 1)


class Reader(nn.Module):
    """A GRU over the angles; its last state tells the constants."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, angles: torch.Tensor) -> torch.Tensor:
        """Return the constants of noisy angles, (samples, 4)."""
        return self.head(self.gru(angles[..., None])[0][:, -1])


def pendulums() -> Task:
    """Length, damping and drive of a pendulum, from how it was seen to swing."""
    g = torch.Generator().manual_seed(3)
    u = torch.rand(22_000, 4, generator=g)
    constants = torch.tensor([0.5, 0.05, 0.1, 0.5]) + u * torch.tensor([1.5, 0.4, 0.9, 2.0])
    seen = _swing(constants)
    seen = seen + 0.05 * torch.randn(seen.shape, generator=g)
    wanted = (u - 0.5) * 12**0.5
    return Task(
        name="pendulums",
        model=Reader,
        train_set=TensorDataset(seen[:20_000], wanted[:20_000]),
        val_set=TensorDataset(seen[20_000:], wanted[20_000:]),
        loss=lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        batch_size=64,
        target=0.12,
    )
