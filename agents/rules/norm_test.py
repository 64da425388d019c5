"""The norm test: enough samples that noise does not hide the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class NormTest(tools.Stateless):
    """Grows the batch size when the batch gradient's variance is too large for its norm.

    With V the trace of the per-sample gradient covariance and g the batch gradient (Byrd, Chin,
    Nocedal and Wu 2012, "Sample size selection in optimization methods for machine learning"; the
    micro-batch form of V is Lau et al. 2024):

        passed when V / B <= theta^2 |g|^2, otherwise B <- ceil(V / (theta^2 |g|^2))

    |g|^2 holds the noise of the batch, so that one test multiplies B by at most 1 / theta^2. The
    size never shrinks.

    Per step in the source, once a chunk here, with the chunk's mean V and |g|^2: the test is a
    statement about expectations, and a chunk's mean is the better estimate of them.

    Attributes:
        theta: Ratio of noise to norm that is tolerated; smaller values ask for larger batches.
    """

    theta: float = 0.9

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        tools.check(0 < self.theta < np.inf, "NormTest.theta must be above 0", self.theta)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the size that passes the test; "stay" without a measurement."""
        trace = np.asarray(signals.noise_trace)
        tolerated = self.theta**2 * tools.batch_gradient_sqr(signals)
        failed = (trace / signals.batch_size > tolerated) & (tolerated > 0)
        change = np.where(
            failed, tools.change_to(np.ceil(trace / tolerated), signals.batch_size), 0.0
        )
        ratio = np.sqrt(trace / signals.batch_size / (tolerated / self.theta**2))
        made = tools.decision(change, "norm-test", "noise over norm {:.3g}", ratio)
        return made, state
