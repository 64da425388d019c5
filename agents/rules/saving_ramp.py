"""Ramp where it saves time: double at a quarter or half of the run and at three quarters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.agents.rules.staircase import check_shares
from rlbatch.observation.cost import interpolated
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.signals.elementwise import isfinite, maximum, number, where
from rlbatch.signals.record import Array, Signals

Flags = NDArray[np.bool_]

_KEPT = 0.9  # weight of the past, each time that the noise was measured
_SHIFTS: Array = np.arange(3.0)  # of log2(batch size): the user's, twice and four times it
_TOLD = 0.99  # of `Signals.step_cost_known`, from which on the cost curve is not a guess


@dataclass(frozen=True)
class SavingRamp:
    """The ramp that people write by hand, where the device makes it pay.

        B <- B0, 2 B0 from half of the planned samples on, 4 B0 from three quarters on

    as `rlbatch.agents.rules.ramp.Ramp`. The first doubling is made at a quarter already where the
    gradient noise scale tr(Sigma) / |G|^2 (McCandlish et al. 2018, "An empirical model of
    large-batch training") is at least `noise` B0: then a step of 2 B0 is worth nearly two of B0.
    Where it is smaller, or was not measured, the run waits for its second half.

    A doubling is made, and kept, only if it lowers what a sample costs by the share `saving`: by
    the told costs of a step, or else by the measured ones.
    Whoever is not told tries the first doubling and goes back if it did not pay; whether the second
    will is read from a straight line through the two, cost(B) = a + b B. On a device that a batch
    of the user's size saturates, the run stays what it was.

    Attributes:
        early: Share of the planned samples at which the size is doubled where the noise allows it.
        first: Share at which it is doubled anyway.
        second: Share at which it is doubled again.
        saving: Least share of a sample's cost that a doubling has to save.
        noise: Least noise scale, in multiples of the user's size, for the early doubling.
    """

    early: float = 0.25
    first: float = 0.5
    second: float = 0.75
    saving: float = 0.1
    noise: float = 3.0

    needs_gradient_noise = True
    noise_rate = 0.3  # the quarter of a run holds enough measurements

    def __post_init__(self) -> None:
        check_shares("SavingRamp", early=self.early, first=self.first, second=self.second)
        tools.check(0 <= self.saving < 1, "SavingRamp.saving must be in [0, 1)", self.saving)
        tools.check(self.noise >= 0, "SavingRamp.noise must not be negative", self.noise)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return cost and samples at the user's size and at twice that, and the noise's means."""
        costs = tuple(np.zeros(shape) for _ in range(4))
        return costs, (tools.mean_start(shape), tools.mean_start(shape))

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def next_state(self, signals: Signals, state: Any) -> Any:
        """Return the state behind a chunk, as `decide` does: whoever needs no decision is quick."""
        costs, means = state
        return _noted(signals, tuple(number(cost) for cost in costs)), _averaged(signals, means)

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the change to the multiple in force; "stay" where the length is unknown."""
        costs, means = self.next_state(signals, state)
        context = signals.context
        done = number(signals.total_samples) / context.planned_samples
        double, quadruple = self._pays(signals, costs)
        begun = (done >= self.first) | ((done >= self.early) & self._noisy(signals, means))
        multiple = where(begun & double, 2.0, 1.0)
        multiple = where((done >= self.second) & double & quadruple, 4.0, multiple)
        wanted = number(context.base_batch_size) * multiple
        known = isfinite(done)
        change = where(known, tools.change_to(wanted, signals.batch_size), 0.0)
        why = "length of the run not known"
        if np.all(known):
            pays = "a larger size saves time" if np.all(double) else "a larger size saves no time"
            why = f"{{:.0%}} of the planned samples, {pays}, noise scale {{:.3g}}"
        scale = tools.mean_value(means[0]) / maximum(tools.mean_value(means[1]), 0.0)
        return tools.decision(change, "saving-ramp", why, done, scale), (costs, means)

    def _noisy(self, signals: Signals, means: Any) -> Flags:
        """Return whether the noise scale allows the early doubling, or has allowed it before."""
        trace, grad_sqr = map(tools.mean_value, means)
        base = number(signals.context.base_batch_size)
        # A mean |G|^2 of no sign is one that drowns in noise. NaN, nothing measured, is False.
        return (trace >= self.noise * base * grad_sqr) | (signals.batch_size >= 1.5 * base)

    def _pays(self, signals: Signals, costs: Any) -> tuple[Flags, Flags]:
        """Return whether the first doubling pays, and whether the second does."""
        least = 1.0 - self.saving
        one, two, four = _told(signals)
        told = number(signals.step_cost_known) >= _TOLD
        cost_one, samples_one, cost_two, samples_two = costs
        seen_one, seen_two = cost_one / samples_one, cost_two / samples_two
        tried = (samples_one > 0) & (samples_two > 0)
        # With c(B) = a + b B a sample costs a/B + b: halving a/B from 2 B0 on saves half as much.
        seen_four = seen_two - (seen_one - seen_two) / 2
        first = where(tried, seen_two <= least * seen_one, ~told | (two <= least * one))
        second = where(told, four <= least * two, tried & (seen_four <= least * seen_two))
        return first, second


def _told(signals: Signals) -> tuple[Array, Array, Array]:
    """Return what a sample costs at one, two and four times the user's size, up to a factor."""
    base = np.log2(number(signals.context.base_batch_size))
    costs = 2.0 ** (interpolated(signals.step_cost_curve, base[..., None] + _SHIFTS) - _SHIFTS)
    return costs[..., 0], costs[..., 1], costs[..., 2]


def _averaged(signals: Signals, means: Any) -> Any:
    """Return the means of tr(Sigma) and |G|^2 with the chunk's, the early ones forgotten."""
    trace, grad_sqr = means
    trace = tools.mean_add(trace, signals.noise_trace, _KEPT)
    return trace, tools.mean_add(grad_sqr, signals.grad_sqr, _KEPT)


def _noted(signals: Signals, state: Any) -> Any:
    """Return the costs with the chunk's, and its samples, at its size."""
    shift = np.log2(number(signals.batch_size) / signals.context.base_batch_size)
    samples = number(signals.batch_size) * signals.steps
    kept = isfinite(signals.chunk_cost)
    noted: list[Array] = []
    for place, doublings in enumerate((0.0, 1.0)):
        here = kept & (abs(shift - doublings) < 0.1)
        noted.append(state[2 * place] + where(here, signals.chunk_cost, 0.0))
        noted.append(state[2 * place + 1] + where(here, samples, 0.0))
    return tuple(noted)
