"""What a step costs at each micro-batch size on this machine: seconds, bytes and joules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlbatch.agents.search.energy import EnergyMeter
from rlbatch.agents.search.passes import PassRunner

ROUNDS = 7
"""Every size is timed once a round, so that a slow moment of the machine meets all of them."""

_BLOCK_SECONDS = 0.03  # of one timing, at least
_ENERGY_SECONDS = 1.0  # counters of energy move every tenth of a second or so


@dataclass(frozen=True)
class StepCost:
    """Measurements of one micro-batch size.

    Attributes:
        size: Samples of a pass.
        pass_seconds: Of a forward and backward pass, one figure a round.
        update_seconds: Of the optimizer's step, one a round.
        joules: Of a pass and a step; None where the hardware does not tell.
        bytes: That a pass needs at its peak; None if unknown.
    """

    size: int
    pass_seconds: tuple[float, ...]
    update_seconds: tuple[float, ...]
    joules: float | None = None
    bytes: int | None = None

    @property
    def seconds(self) -> float:
        """Median of a pass."""
        return float(np.median(self.pass_seconds))


def time_sizes(
    runner: PassRunner,
    sizes: Sequence[int],
    *,
    rounds: int = ROUNDS,
    max_seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
    on_size: Callable[[int, int], None] | None = None,
) -> list[StepCost]:
    """Return the timings of sizes, smallest first, up to the first pass that takes too long.

    Args:
        runner: Runs the passes.
        sizes: Micro-batch sizes that fit.
        rounds: Timings of each.
        max_seconds: A size of which a pass takes longer is the last one.
        clock: Returns seconds.
        on_size: Called with the timings done and their number.
    """
    batches = {}
    for size in sorted(sizes):  # the first passes are slower than all later ones
        batches[size] = runner.batch(size)
        _timed(runner, lambda b=batches[size]: runner.backward(b), 2, clock)
        runner.update()
        if _timed(runner, lambda b=batches[size]: runner.backward(b), 1, clock) > max_seconds:
            break
    runner.optimizer.zero_grad()
    passes: dict[int, list[float]] = {size: [] for size in batches}
    updates: dict[int, list[float]] = {size: [] for size in batches}
    for turn in range(rounds):
        for place, (size, batch) in enumerate(batches.items()):
            once = _timed(runner, lambda b=batch: runner.backward(b), 1, clock)
            count = max(1, round(_BLOCK_SECONDS / max(once, 1e-6)))
            passes[size].append(_timed(runner, lambda b=batch: runner.backward(b), count, clock))
            updates[size].append(_timed(runner, runner.optimizer.step, 3, clock))
            runner.optimizer.zero_grad()
            if on_size is not None:
                on_size(turn * len(batches) + place + 1, rounds * len(batches))
    return [StepCost(size, tuple(passes[size]), tuple(updates[size])) for size in batches]


def joules_of_step(
    runner: PassRunner,
    size: int,
    meter: EnergyMeter,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the joules of a pass and an update, over as many as fill a second."""
    batch = runner.batch(size)
    runner.wait()
    began, before, count = clock(), meter.joules(), 0
    while clock() - began < _ENERGY_SECONDS:
        runner.backward(batch)
        runner.update()
        runner.wait()
        count += 1
    return (meter.joules() - before) / max(count, 1)


def _timed(
    runner: PassRunner, work: Callable[[], object], count: int, clock: Callable[[], float]
) -> float:
    """Return the seconds of one of several repetitions."""
    runner.wait()
    began = clock()
    for _ in range(count):
        work()
    runner.wait()
    return (clock() - began) / count
