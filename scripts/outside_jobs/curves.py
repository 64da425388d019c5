"""Jobs with measurements: electric load to forecast, a simulation to stand in for."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from outside import Rows, as_is, make, others, rate
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import Dataset

from rlbatch.envs import Task

# Electric load: forecasting with a dilated causal CNN, Adam, linear decay

_PAST, _AHEAD = 48, 8


@cache
def _load() -> tuple[Dataset, Dataset]:
    """Windows of series with two seasons, a drifting level, and shocks that die out."""
    rng = np.random.default_rng(106)
    series, length = 500, 24 * 14
    time = np.arange(length)[None]
    day, week = 24, 24 * 7
    loads = np.zeros((series, length))
    for harmonic in (1, 2, 3):
        for period, size in ((day, 1.0), (week, 0.5)):
            phase = rng.uniform(0, 2 * np.pi, (series, 1))
            strength = rng.gamma(2, size / 2 / harmonic, (series, 1))
            loads += strength * np.sin(2 * np.pi * harmonic * time / period + phase)
    memory = rng.uniform(0.6, 0.95, series)
    noise = np.zeros(series)
    for t in range(length):
        shock = rng.normal(0, 0.25, series) + 1.2 * (rng.random(series) < 0.03)
        noise = memory * noise + shock
        loads[:, t] += noise + 0.3 * np.maximum(loads[:, t - 1], 0) * np.sin(t / 7)
    window = _PAST + _AHEAD

    def cut(rows: range, count: int) -> Rows:
        who = rng.integers(rows.start, rows.stop, count)
        start = rng.integers(0, length - window, count)
        pieces = loads[who[:, None], start[:, None] + np.arange(window)]
        past = pieces[:, :_PAST]
        centre, spread = past.mean(1, keepdims=True), past.std(1, keepdims=True) + 0.1
        pieces = torch.tensor((pieces - centre) / spread, dtype=torch.float32)
        return Rows(pieces[:, None, :_PAST], pieces[:, _PAST:])

    return cut(range(450), 50_000), cut(range(450, 500), 2_000)


class Dilated(nn.Module):
    """Four residual causal convolutions; the last step predicts the horizon."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.entry = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=3**k) for k in range(3))
        self.exit = nn.Sequential(nn.Linear(2 * width, 48), nn.ReLU(), nn.Linear(48, _AHEAD))

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        """Return what the loss compares."""
        x = self.entry(past)
        for place, layer in enumerate(self.layers):
            x = x + functional.relu(layer(functional.pad(x, (2 * 3**place, 0))))
        return self.exit(torch.cat([x[:, :, -1], x[:, :, -24]], 1))


def _forecast(model: nn.Module, batch) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def load_tcn(factor: float = 1.0) -> Task:
    """Forecasting of electric load."""
    train, val = _load()
    lr = rate("load_tcn", factor)
    return make(
        "load_tcn",
        factor,
        model=Dilated,
        train_set=train,
        val_set=val,
        loss=_forecast,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        scheduler=lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.02, total_iters=steps),
        collate=as_is,
    )


# Borehole: an MLP as the surrogate of a simulation, Adam, constant rate


@cache
def _borehole() -> tuple[Dataset, Dataset]:
    """Water flow through a borehole (Harper and Gupta 1983), with measurement noise."""
    rng = np.random.default_rng(108)
    low = np.array([0.05, 100, 63070, 990, 63.1, 700, 1120, 9855])
    high = np.array([0.15, 50000, 115600, 1110, 116, 820, 1680, 12045])
    unit = rng.random((23_000, 8))
    rw, r, tu, hu, tl, hl, length, kw = (low + unit * (high - low)).T
    log = np.log(r / rw)
    flow = 2 * np.pi * tu * (hu - hl) / (log * (1 + 2 * length * tu / (log * rw**2 * kw) + tu / tl))
    flow = (flow - flow.mean()) / flow.std() * 3
    wave = np.sin(4 * unit[:, 1] + 2 * unit[:, 6]) * (unit[:, 3] - 0.5)
    flow = flow + 2 * wave + rng.normal(0, 0.1, len(flow))
    x = torch.tensor(2 * unit - 1, dtype=torch.float32)
    y = torch.tensor(flow, dtype=torch.float32)
    return Rows(x[:20_000], y[:20_000]), Rows(x[20_000:], y[20_000:])


def _surrogate_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
        nn.Linear(64, 1), nn.Flatten(0),
    )  # fmt: skip


def borehole_mlp(factor: float = 1.0) -> Task:
    """Surrogate of a simulation."""
    train, val = _borehole()
    lr = rate("borehole_mlp", factor)
    return make(
        "borehole_mlp",
        factor,
        model=_surrogate_network,
        train_set=train,
        val_set=val,
        loss=_forecast,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        collate=as_is,
    )


globals().update(others(load_tcn, borehole_mlp))
