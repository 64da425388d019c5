"""Many simulated episodes side by side, in NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlbatch import observation
from rlbatch.envs.objectives import UNREACHED_RATIO, disutility
from rlbatch.envs.simulator.arrays import Array
from rlbatch.envs.simulator.pool import TaskPool, crossing
from rlbatch.envs.simulator.runs import QuadraticRuns
from rlbatch.signals.cadence import NOISE_RATE
from rlbatch.signals.record import Signals


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

    An episode starts with one chunk at its start batch size. The guard of a live run is part of it:
    a chunk that diverges is undone, its cost is spent, and the batch size goes back to the one
    before. Two such chunks in a row without a change of size between them end the episode.
    """

    def __init__(
        self,
        pool: TaskPool,
        count: int,
        rng: np.random.Generator,
        *,
        noise_rate: float = NOISE_RATE,
    ) -> None:
        """Prepare `count` episodes; call `begin` before the first `step`.

        Args:
            pool: Tasks.
            count: Episodes side by side.
            rng: Source of the measurement noise.
            noise_rate: Measures the gradient noise, which is charged; 0 for none.
        """
        self.pool, self.rng = pool, rng
        self.task_index = np.zeros(count, dtype=np.int64)
        self.runs = QuadraticRuns(pool.tasks.take(self.task_index), rng, noise_rate=noise_rate)
        self.runs.target_loss = pool.target_loss[self.task_index]
        self.reference = pool.reference_cost
        self.batch_size = np.ones(count)
        self.previous_size = np.ones(count)
        self.rollbacks = np.zeros(count)
        self.state = observation.initial_state((count,))
        self.signals: Signals | None = None

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.task_index)

    def begin(self, index: NDArray[np.int64], tasks: NDArray[np.int64]) -> None:
        """Put episodes at these positions at the start of these tasks, before a first chunk."""
        self.task_index[index] = tasks
        for name, values in vars(self.runs.tasks).items():
            values[index] = getattr(self.pool.tasks, name)[tasks]
        self.runs.target_loss[index] = self.pool.target_loss[tasks]  # type: ignore[index]
        self.runs.start(index)
        self.batch_size[index] = self.previous_size[index] = self.runs.tasks.start_batch_size[index]
        self.rollbacks[index] = 0.0
        for current, fresh in zip(
            self.state, observation.initial_state((len(index),)), strict=True
        ):
            current[index] = fresh

    def step(self, log2_change: Array | None) -> Transition:
        """Apply decisions and train one chunk.

        Args:
            log2_change: Decided change of log2(batch size), one entry an episode; None keeps every
                size (first chunk).
        """
        tasks = self.runs.tasks
        if log2_change is not None:
            size = np.round(np.exp2(np.log2(self.batch_size) + log2_change))
            size = np.clip(size, tasks.min_batch_size, tasks.max_batch_size)
            self.rollbacks[size != self.batch_size] = 0.0
            self.previous_size = self.batch_size
            self.batch_size = size
        outcome = self.runs.advance(self.batch_size)
        self.signals = outcome.signals
        seen, self.state = observation.encode(outcome.signals, self.state)
        undone = outcome.rolled_back
        self.rollbacks = np.where(
            undone, self.rollbacks + (self.batch_size == self.previous_size) + 1e-9, 0.0
        )
        self.batch_size = np.where(undone, self.previous_size, self.batch_size)

        reference = self.reference[self.task_index]
        target = np.asarray(self.runs.target_loss)
        reached = ~undone & (outcome.validation_after <= target)
        spent = (
            np.where(reached, outcome.cost * crossing(outcome, target), outcome.cost) / reference
        )
        before = (self.runs.cost - outcome.cost) / reference
        ratio = before + spent
        reached &= ratio < UNREACHED_RATIO
        failed = (self.rollbacks >= 2.0) | (ratio >= UNREACHED_RATIO)
        # Whatever a run that failed has spent, it counts as the cap.
        after = np.where(failed & ~reached, UNREACHED_RATIO, ratio)
        reward = disutility(before) - disutility(after)
        return Transition(
            seen, reward, reached | failed, np.where(reached, ratio, UNREACHED_RATIO), reached
        )
