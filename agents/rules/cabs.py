"""CABS: batch size coupled to learning rate, gradient variance and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class Cabs:
    """Sets the batch size to learning rate x gradient variance / loss.

    With xi the trace of the per-sample gradient covariance, F the training loss and alpha the
    learning rate in force (Balles, Romero and Hennig 2017, "Coupling adaptive batch sizes with
    learning rates", equation 22, which takes the lowest possible loss as 0):

        B <- round(scale * alpha * xi / F)

    The paper is about SGD without momentum at a learning rate that does not depend on B. Under an
    LR coupling alpha follows B, and the rule feeds back on itself; for adaptive optimizers xi is
    given in their preconditioned metric.

    Both terms are running means. The authors forget by 0.95 a step, so a chunk of n steps forgets
    by 0.95 ** n; unlike theirs the means are debiased and do not start at 0 and 1.

    Attributes:
        decay: Weight of the past in both running means, per step.
        scale: Factor on the result; the authors recommend 1.
    """

    decay: float = 0.95
    scale: float = 1.0

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 <= self.decay < 1, "Cabs.decay must be in [0, 1)", self.decay)
        tools.check(0 < self.scale < np.inf, "Cabs.scale must be above 0", self.scale)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the averages (xi, loss) of nothing."""
        return tools.mean_start(shape), tools.mean_start(shape)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the coupled size; "stay" where xi or the loss is not positive."""
        variance, loss = state
        decay = self.decay ** np.asarray(signals.steps, dtype=np.float64)
        variance = tools.mean_add(variance, signals.noise_trace, decay)
        loss = tools.mean_add(loss, signals.train_loss, decay)
        rate = (
            np.asarray(signals.context.learning_rate)
            * signals.learning_rate_factor
            * signals.schedule_factor
        )
        wanted = self.scale * rate * tools.mean_value(variance) / tools.mean_value(loss)
        known = (tools.mean_value(variance) > 0) & (tools.mean_value(loss) > 0)
        size = np.maximum(np.round(wanted), 1.0)
        change = np.where(known, tools.change_to(size, signals.batch_size), 0.0)
        return tools.decision(change, "cabs", "coupled size {:.4g}", wanted), (variance, loss)
