"""Batch sizes for functions that are compiled anew for each of them: few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlbatch.control.config import ControllerConfig
from rlbatch.errors import ConfigurationError
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.wrapper import Wrapper
from rlbatch.signals.record import Signals


@dataclass(frozen=True)
class PowersOfTwo:
    """The user's batch size times powers of two, and what an epoch's end needs.

    All sizes are multiples of the smallest. So an epoch's end, cut into allowed sizes, leaves fewer
    samples than that, always the same number: with the plain run's own last batch, two sizes come
    on top of `allowed`, whatever is decided.

    Attributes:
        base: The user's batch size.
        dataset_size: Samples of an epoch.
        allowed: In ascending order.
    """

    base: int
    dataset_size: int
    allowed: tuple[int, ...]

    @classmethod
    def between(cls, low: int, high: int, base: int, dataset_size: int) -> PowersOfTwo:
        """Return all such sizes within limits."""
        smallest = base
        while smallest % 2 == 0 and smallest // 2 >= low:
            smallest //= 2
        count = int(math.log2(high / smallest) + 1e-9) + 1
        return cls(base, dataset_size, tuple(smallest << power for power in range(count)))

    def piece(self, left: int) -> int:
        """Return the size of the next step when fewer samples are left than it should have."""
        if left == self.dataset_size % self.base:
            return left  # as in the plain run
        return max((size for size in self.allowed if size <= left), default=left)

    def limited(self, config: ControllerConfig) -> ControllerConfig:
        """Return settings whose limits are allowed sizes.

        Raises:
            ConfigurationError: A decision may not even double the size.
        """
        if config.max_log2_change is not None and config.max_log2_change < 1:
            raise ConfigurationError(
                f"With a model compiled for each batch size, sizes are powers of two apart, and "
                f"max_log2_change {config.max_log2_change} allows no change. Set it to 1 or more, "
                "or compile the model with jit_compile=False."
            )
        return replace(
            config,
            limits=replace(
                config.limits,
                min_batch_size=self.allowed[0],
                max_batch_size=self.allowed[-1],
            ),
            max_log2_change=config.max_log2_change and float(int(config.max_log2_change)),
        )


@dataclass(frozen=True)
class Rounded(Wrapper):
    """Rounds decisions to the nearest allowed size.

    Attributes:
        policy: The inner policy.
        sizes: That are allowed.
    """

    policy: Policy
    sizes: Sequence[int]

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the inner decision, rounded."""
        asked, state = self.policy.decide(observation, signals, state)
        wanted = np.log2(signals.batch_size) + asked.log2_change
        steps = np.log2(np.asarray(self.sizes, dtype=np.float64))
        nearest = steps[np.abs(np.expand_dims(wanted, -1) - steps).argmin(-1)]
        change = nearest - np.log2(signals.batch_size)
        return tools.adjusted(asked, change, "powers of two"), state
