"""The parts of a training in torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rlbatch.control.rank_monitor import RankMonitor, ShardMonitor
from rlbatch.control.ranks import Ranks
from rlbatch.control.schedule_length import scheduled_steps
from rlbatch.control.snapshot import Snapshot
from rlbatch.control.training_parts import TrainingParts
from rlbatch.data.learning_rate import LearningRateCoupling
from rlbatch.signals.metric import is_adaptive, momentum_of
from rlbatch.signals.monitor import ChunkMonitor
from rlbatch.signals.record import Coupling


class TorchRate:
    """The learning rate of a torch optimizer.

    Attributes:
        adaptive: Whether the optimizer is of Adam type.
        coupling: Multiplies it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Take the optimizer, whose groups may change at any time."""
        self._optimizer, self.adaptive = optimizer, is_adaptive(optimizer)
        self.coupling = LearningRateCoupling(optimizer, Coupling.NONE, 1, adaptive=self.adaptive)

    @property
    def factor(self) -> float:
        """What it is multiplied by within a step."""
        return self.coupling.factor

    @factor.setter
    def factor(self, factor: float) -> None:
        self.coupling.factor = factor

    @property
    def initial(self) -> float:
        """Learning rate before any schedule."""
        group = self._optimizer.param_groups[0]
        return float(group.get("initial_lr", group["lr"]))

    @property
    def momentum(self) -> float:
        """Decay of the first moment; 0 where there is none."""
        return momentum_of(self._optimizer)

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule sets it: each of torch's leaves its mark."""
        return any("initial_lr" in group for group in self._optimizer.param_groups)

    def scheduled_steps(self, epoch_steps: int) -> int | None:
        """Return for how many steps at the user's batch size its schedule was made, if it says."""
        return scheduled_steps(self._optimizer, epoch_steps) if self.is_scheduled else None

    def current(self) -> float:
        """Return it as scheduled, without the factor."""
        return float(self._optimizer.param_groups[0]["lr"])

    def applied(self) -> AbstractContextManager[float]:
        """Multiply within the `with` block, around optimizer.step() alone."""
        return self.coupling.applied()

    def attach(self) -> Callable[[], None]:
        """Multiply in every optimizer.step() of a loop that others wrote; returns what ends it."""
        return self.coupling.attach()


@dataclass(frozen=True)
class TorchParts(TrainingParts):
    """A training in torch.

    Attributes:
        rate: Its learning rate, which can be applied to a step.
    """

    rate: TorchRate


def torch_parts(
    model: nn.Module, optimizer: Optimizer, *, scaler: Any = None, ranks: Ranks | None = None
) -> TorchParts:
    """Return the parts of a training in torch.

    Args:
        model: What is trained.
        optimizer: Its optimizer.
        scaler: A `torch.amp.GradScaler` in use.
        ranks: The processes that train together; None for this one alone.
    """
    parameters = model.parameters()
    if ranks is not None and ranks.world_size > 1:
        kind = ShardMonitor if ranks.sharded else RankMonitor
        monitor: ChunkMonitor = kind(parameters, optimizer, ranks, scaler=scaler)
    else:
        monitor = ChunkMonitor(parameters, optimizer, scaler=scaler, model=model)
    return TorchParts(
        rate=TorchRate(optimizer),
        monitor=monitor,
        weights=Snapshot(model, optimizer),
        model=type(model).__name__,
        optimizer=type(optimizer).__name__,
    )
