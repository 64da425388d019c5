"""Small training programs as people write them, and what each of their steps should have been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rlbatch
from rlbatch.testing import ScriptedPolicy
from tests.helpers import tanh_network

BASE = 8
FEATURES, CLASSES, TOKENS = 6, 5, 7

Loss = Callable[[nn.Module, Any], Tensor]
Weight = Callable[[Any], Any]


class Rows(Dataset[tuple[int, Tensor, Tensor, Tensor]]):
    """Numbered samples with a class, and a sequence of labels of which some do not count."""

    def __init__(self, samples: int = 75) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (samples, TOKENS)
        self.x = torch.randn(*shape, FEATURES, generator=generator, dtype=torch.float64)
        self.tokens = torch.randint(CLASSES, shape, generator=generator)
        lengths = torch.randint(0, TOKENS + 1, (samples, 1), generator=generator)
        lengths[samples // 3 : samples // 2] = 0  # nothing to learn in many a row
        self.tokens[torch.arange(TOKENS) >= lengths] = -100
        self.kind = torch.randint(CLASSES, (samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor, Tensor]:
        return index, self.x[index], self.kind[index], self.tokens[index]

    def batch(self, indices: Sequence[int]) -> list[Any]:
        """Return samples as a loader does."""
        chosen = torch.tensor(list(indices))
        return [chosen, self.x[chosen], self.kind[chosen], self.tokens[chosen]]


def network() -> nn.Module:
    return tanh_network(FEATURES, 9, CLASSES, seed=3).double()


def flat(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors if tensor is not None])


def gradient_of_all(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Return the gradient of the undivided batch, by autograd alone."""
    return flat(torch.autograd.grad(loss(model, batch), list(model.parameters())))


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error of a gradient."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@dataclass
class Steps:
    """What a run's optimizer steps were made of.

    Attributes:
        parts: Samples of each part of each step.
        errors: Relative error of each step's gradient.
    """

    parts: list[list[list[int]]] = field(default_factory=lambda: [[]])
    errors: list[float] = field(default_factory=list[float])

    @property
    def divided(self) -> list[float]:
        """Errors of the steps of several parts."""
        return [e for e, parts in zip(self.errors, self.parts, strict=False) if len(parts) > 1]

    @property
    def whole(self) -> list[float]:
        """Errors of the others."""
        return [e for e, parts in zip(self.errors, self.parts, strict=False) if len(parts) == 1]

    @property
    def sizes(self) -> list[int]:
        """Samples of each step."""
        return [sum(map(len, parts)) for parts in self.parts if parts]


def train(
    loss: Loss,
    *,
    weight: Weight | None = None,
    policy: Any = None,
    epochs: int = 2,
    scaler: Any = None,
    **settings: Any,
) -> Steps:
    """Train at a rate of 0 and compare each step's gradient with that of all its samples.

    Args:
        loss: Of the model and a batch; a mean.
        weight: What it is the mean of.
        policy: Decides; None raises the batch size from 8 to 32 at once.
        epochs: How many.
        scaler: A GradScaler, if one is in use.
        **settings: Of the controller.
    """
    model, rows, steps = network(), Rows(), Steps()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"micro_batch_size": 5, "lr_coupling": "none", "cost": "samples", **settings}
    policy = ScriptedPolicy((2.0,)) if policy is None else policy
    controller = rlbatch.BatchController(
        model, optimizer, batch_size=BASE, policy=policy, scaler=scaler, **settings
    )
    generator = torch.Generator().manual_seed(1)
    loader = controller.loader(DataLoader(rows, BASE, shuffle=True, generator=generator))

    def look(*_: Any) -> None:
        indices = [index for part in steps.parts[-1] for index in part]
        found = flat([p.grad for p in model.parameters()])
        steps.errors.append(error(found, gradient_of_all(model, loss, rows.batch(indices))))

    optimizer.register_step_pre_hook(look)
    for _ in range(epochs):
        for batch in loader:
            steps.parts[-1].append(batch[0].tolist())
            value = loss(model, batch)
            if weight is None:
                controller.backward(value)
            else:
                controller.backward(value, weight=weight(batch))
            if controller.step():
                steps.parts.append([])
    return steps
