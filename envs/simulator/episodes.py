"""Many simulated episodes side by side, in NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlbatch import observation
from rlbatch.data.step_plan import resize
from rlbatch.envs.objectives import UNREACHED_RATIO
from rlbatch.envs.reward import ratio_reward
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.pool import TaskPool, crossing
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Signals

_FRESH = observation.initial_state()  # of each run


@dataclass(frozen=True)
class Transition:
    """What one step did to every episode.

    Attributes:
        observation: Observation after the step; where an episode ended, the last one of that
            episode.
        reward: What the chunk added to the `disutility` of cost over reference cost, negative; an
            episode's rewards sum to minus that of its ratio.
        ended: True where the episode is over.
        ratio: Cost over reference cost, `UNREACHED_RATIO` where the target was not reached;
            meaningful where `ended`.
        reached: True where the target was reached.
    """

    observation: NDArray[np.float32]
    reward: Array
    ended: NDArray[np.bool_]
    ratio: Array
    reached: NDArray[np.bool_]


class QuadraticEpisodes:
    """`n` episodes on tasks of a pool.

    An episode starts with one chunk at its start batch size.
    """

    def __init__(
        self,
        pool: TaskPool,
        count: int,
        rng: np.random.Generator,
        *,
        noise_rate: float = NOISE_RATE,
        tasks: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare `count` episodes.

        Args:
            pool: Tasks.
            count: Episodes side by side.
            rng: Source of the measurement noise.
            noise_rate: Measures the gradient noise, which is charged; 0 for none.
            tasks: At whose start the episodes stand; None: call `begin` before the first `step`.
        """
        self.pool, self.rng = pool, rng
        self.task_index = np.zeros(count, dtype=np.int64) if tasks is None else tasks.copy()
        self.runs = QuadraticRuns(pool.tasks.take(self.task_index), rng, noise_rate=noise_rate)
        self.runs.target_loss = pool.target_loss[self.task_index]
        self.reference = pool.reference_cost
        self.state = observation.initial_state((count,))
        self.signals: Signals | None = None

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.task_index)

    @property
    def batch_size(self) -> Array:
        """Batch sizes in force."""
        return self.runs.batch_size

    def begin(self, index: NDArray[np.int64], tasks: NDArray[np.int64]) -> None:
        """Put episodes at these positions at the start of these tasks, before a first chunk."""
        self.task_index[index] = tasks
        for name, values in vars(self.runs.tasks).items():
            values[index] = getattr(self.pool.tasks, name)[tasks]
        self.runs.target_loss[index] = self.pool.target_loss[tasks]  # type: ignore[index]
        self.runs.start(index)
        for current, fresh in zip(self.state, _FRESH, strict=True):
            current[index] = fresh

    def step(self, log2_change: Array | None) -> Transition:
        """Apply decisions and train one chunk.

        Args:
            log2_change: Decided change of log2(batch size), one entry an episode; None keeps every
                size (first chunk).
        """
        size = self.batch_size
        if log2_change is not None:
            limits = self.runs.tasks.min_batch_size, self.runs.tasks.max_batch_size
            size = resize(size, log2_change, *limits)
        outcome = self.runs.advance(size)
        self.signals = outcome.signals
        seen, self.state = observation.encode(outcome.signals, self.state)

        reference = self.reference[self.task_index]
        target = np.asarray(self.runs.target_loss)
        arrived = outcome.validation_after <= target
        reached = arrived & ~outcome.rolled_back & ~self.runs.diverged
        part = np.where(reached, crossing(outcome, target), 1.0)
        before = (self.runs.cost - outcome.cost) / reference
        ratio = before + part * outcome.cost / reference
        reached &= ratio < UNREACHED_RATIO
        lost = ~reached & (self.runs.diverged | (ratio >= UNREACHED_RATIO))
        reward = ratio_reward(before, ratio, lost=lost)
        return Transition(
            seen, reward, reached | lost, np.where(reached, ratio, UNREACHED_RATIO), reached
        )
