"""Gradient noise of undivided batches in float64, on each device, against the samples' own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from rlbatch.signals import sample_noise
from rlbatch.signals.metric import make_metric
from rlbatch.signals.monitor import ChunkMonitor
from tests.rlbatch.signals.test_sample_noise import (
    Convolutions,
    Transformer,
    data_of,
    expected,
    flat,
    mean_loss,
    measured,
    perceptron,
    sample_gradients,
)


def moved(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, torch.float64 if x.is_floating_point() else x.dtype)


@pytest.mark.parametrize("make_model", [perceptron, Convolutions, Transformer])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_the_samples_own_gradients(
    make_model: Callable[[], nn.Module],
    adaptive: bool,
    scaled: bool,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_noise, "_ELEMENTS", 1 << 20)  # these small layers, whole
    monkeypatch.setattr(sample_noise, "MAX_LAYERS", 20)
    torch.manual_seed(1)
    model = make_model().double()
    on_device = copy.deepcopy(model).to(name)
    optimizers = [
        AdamW(m.parameters(), lr=0.01) if adaptive else SGD(m.parameters(), lr=0.01)
        for m in (model, on_device)
    ]
    scaler: Any = torch.amp.GradScaler(name, init_scale=2.0**20) if scaled else None
    monitor = ChunkMonitor(on_device.parameters(), optimizers[1], model=on_device, scaler=scaler)
    gradients: dict[str, Tensor] = {}
    weight: Tensor | float = 1.0
    for seed in (1, 2, 3, 0):
        if seed == 0:
            x, y = data_of(model)
            gradients = sample_gradients(model, moved(x, torch.device("cpu")), y, mean_loss)
            metric = make_metric(model.parameters(), optimizers[0])
            assert metric is not None
            if metric.scales is not None:
                weight = torch.cat([s.flatten() for s in metric.scales]).double().square()
        for each, optimizer in zip((model, on_device), optimizers, strict=True):
            device = next(each.parameters()).device
            x, y = (moved(part, device) for part in data_of(model, seed))
            watched = seed == 0 and each is on_device
            if watched:
                monitor.begin_step([len(x)], measured=True)
            loss = mean_loss(each(x), y)
            (scaler.scale(loss) if scaled and each is on_device else loss).backward()
            if watched:
                monitor.after_backward(loss)
            if scaled and each is on_device:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
    assert measured(monitor.finish()) == pytest.approx(expected(flat(gradients), weight), rel=2e-4)
