"""A bandit over batch sizes for a job that recurs: each recurrence runs one size and is the test.

As in Zeus (You et al. 2023, "Zeus: Understanding and Optimizing GPU Energy Consumption of DNN
Training", section 4): first rounds of pruning, then Gaussian Thompson sampling; a run that has cost
`beta` times the least cost so far is given up. The functions here are pure; `bandit_store` keeps
the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlbatch.errors import ConfigurationError, RlbatchError


@dataclass(frozen=True)
class Bandit:
    """A bandit's sizes and settings.

    Attributes:
        sizes: The arms, rising.
        default: The size at which the job runs today.
        rounds: Of pruning.
        beta: Multiple of the least cost so far at which a run is given up; infinite for never.
        window: Most recent runs of a size that count; 0 for all. A short one follows drift.
        prior_mean: Of a size's reward, before any run.
        prior_precision: Of the same; 0 knows nothing.
        explorations: Runs of each size before its posterior counts.
        seed: Of the draws.
    """

    sizes: tuple[int, ...]
    default: int
    rounds: int = 2
    beta: float = 2.0
    window: int = 0
    prior_mean: float = 0.0
    prior_precision: float = 0.0
    explorations: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse arms without the default, and limits that forbid everything."""
        if list(self.sizes) != sorted(set(self.sizes)) or self.default not in self.sizes:
            raise ConfigurationError(
                "A bandit needs rising sizes with the default among them, got "
                f"{list(self.sizes)} and {self.default}."
            )
        if self.sizes[0] < 1 or self.rounds < 1 or self.explorations < 1 or self.window < 0:
            raise ConfigurationError(
                "Sizes, rounds and explorations must be at least 1 and the window at least 0, got "
                f"{list(self.sizes)}, {self.rounds}, {self.explorations}, {self.window}."
            )
        if not self.beta > 1.0 or self.prior_precision < 0.0:
            raise ConfigurationError(
                "beta must be above 1 and prior_precision not negative, got "
                f"{self.beta} and {self.prior_precision}."
            )


@dataclass(frozen=True)
class PastRun:
    """One recurrence of the job.

    Attributes:
        batch_size: Its size.
        pruning: It was made for the pruning; others, made while one of these ran, do not count
            there.
        running: It has not ended yet.
        cost: What it spent.
        converged: It reached its target before it was given up.
    """

    batch_size: int
    pruning: bool
    running: bool = False
    cost: float = math.nan
    converged: bool = False


@dataclass(frozen=True)
class Choice:
    """What the next recurrence is to do.

    Attributes:
        batch_size: Its size.
        pruning: It is a step of the pruning.
        max_cost: Cost at which to give it up; infinite for never.
        why: A few words.
    """

    batch_size: int
    pruning: bool
    max_cost: float
    why: str


@dataclass(frozen=True)
class _Pruning:
    """Where the pruning stands: the size that it wants next, None at its end; the survivors."""

    wanted: int | None
    survivors: tuple[int, ...]
    failed: frozenset[int] = field(default_factory=frozenset[int])


def choose(plan: Bandit, runs: Sequence[PastRun]) -> Choice:
    """Return what the next recurrence runs, given all before it, oldest first.

    The draws follow from the plan's seed and the number of runs, so that the same runs give the
    same choice.

    Raises:
        RlbatchError: No size has converged in a whole round of pruning.
    """
    limit = plan.beta * least_cost(runs)
    pruning = _pruning(plan, [run for run in runs if run.pruning and not run.running])
    if pruning.wanted is not None:
        if any(run.pruning and run.running for run in runs):
            size = _cheapest(plan, runs)
            return Choice(size, False, limit, "the cheapest so far, while another run explores")
        return Choice(pruning.wanted, True, limit, "pruning")
    arms = pruning.survivors
    rng = np.random.default_rng([plan.seed, len(runs)])
    rewards = {size: arm_rewards(plan, runs, size) for size in arms}
    started = {size: sum(run.batch_size == size for run in runs) for size in arms}
    for size in rng.permutation(arms):
        if started[int(size)] < plan.explorations:
            return Choice(int(size), False, limit, "too few runs of this size so far")
    drawn: dict[int, float] = {}
    for size in arms:
        mean, precision = posterior(plan, rewards[size])
        deviation = 0.0 if math.isinf(precision) else 1.0 / math.sqrt(precision)
        drawn[size] = mean + deviation * float(rng.standard_normal())
    return Choice(max(arms, key=lambda size: drawn[size]), False, limit, "Thompson sampling")


def posterior(plan: Bandit, rewards: Sequence[float]) -> tuple[float, float]:
    """Return mean and precision of a size's expected reward.

    The reward is Gaussian with the precision of its own observations, the prior of its mean too:
    with n rewards, prec = prior + n prec_r and mean = (prior prior_mean + prec_r sum) / prec. Where
    the observations do not vary, as a single one, the precision is infinite.
    """
    spread = float(np.var(rewards))
    if spread == 0.0:
        return float(np.mean(rewards)), math.inf
    precision = plan.prior_precision + len(rewards) / spread
    total = plan.prior_precision * plan.prior_mean + float(np.sum(rewards)) / spread
    return total / precision, precision


def arm_rewards(plan: Bandit, runs: Sequence[PastRun], size: int) -> list[float]:
    """Return the rewards, costs with the sign changed, of a size's finished runs in the window."""
    rewards = [-run.cost for run in runs if run.batch_size == size and not run.running]
    return rewards[-plan.window :] if plan.window else rewards


def least_cost(runs: Sequence[PastRun]) -> float:
    """Return the least cost of a run that converged; infinite without one."""
    return min((r.cost for r in runs if r.converged and not r.running), default=math.inf)


def survivors(plan: Bandit, runs: Sequence[PastRun]) -> tuple[int, ...]:
    """Return the sizes that are still in the race."""
    pruning = _pruning(plan, [run for run in runs if run.pruning and not run.running])
    return tuple(size for size in pruning.survivors if size not in pruning.failed)


def _cheapest(plan: Bandit, runs: Sequence[PastRun]) -> int:
    done = [run for run in runs if run.converged and not run.running]
    return min(done, key=lambda run: run.cost).batch_size if done else plan.default


def _pruning(plan: Bandit, done: Sequence[PastRun]) -> _Pruning:
    """Replay the pruning: from the default down, then up, each way up to the first failure.

    The next round starts from the cheapest of those that converged, without the others.
    """
    sizes, default = plan.sizes, plan.default
    left = list(done)
    for _ in range(plan.rounds):
        place = sizes.index(default)
        good: dict[int, float] = {}
        bad: set[int] = set()
        for way in (sizes[: place + 1][::-1], sizes[place + 1 :]):
            for size in way:
                if not left:
                    return _Pruning(size, sizes, frozenset(bad))
                run = left.pop(0)
                if run.batch_size != size:
                    raise RlbatchError(
                        f"The bandit's runs do not fit its sizes: {size} was expected, "
                        f"{run.batch_size} was run. Its state was made with other settings."
                    )
                if not run.converged:
                    bad.add(size)
                    break
                good[size] = run.cost
        if not good:
            raise RlbatchError(
                f"No batch size of {list(sizes)} reached the target. Choose an easier target, or "
                "allow more steps."
            )
        sizes, default = tuple(sorted(good)), min(good, key=lambda size: good[size])
    return _Pruning(None, sizes)
