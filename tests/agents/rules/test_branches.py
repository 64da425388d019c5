"""Warm-up by branches on a quadratic, against what follows by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rlbatch.agents.evaluate.run import RunResult, controlled_run
from rlbatch.agents.rules.branches import Branches
from rlbatch.envs.objectives import Cadence, Objective
from rlbatch.envs.profiles import CostWeights, resolve_profile
from rlbatch.errors import ConfigurationError
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Coupling
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract
from tests.envs.test_trial import quadratic

RATE = 0.02


class TestBranches(PolicyContract):
    def make_policy(self) -> Policy:
        return Branches()


def trained(task: Any, rule: Branches, coupling: Coupling, samples: float) -> RunResult:
    """Train for so many samples, on a clock that counts samples."""
    return controlled_run(
        task,
        rule,
        seed=3,
        coupling=coupling,
        profile=resolve_profile("cpu"),
        objective=Objective(planned_samples=samples, weights=CostWeights(0.0, 1.0)),
        cadence=Cadence(first=4),
        planned_steps=math.ceil(samples / 8),
    )


def kept_up(multiple: int) -> float:
    """Return by how much a branch of a multiple lags behind without noise and without coupling.

    Of 16 samples over the user's size, steps of size k times that take 16/k; the loss after j steps
    is (1 - RATE)^(2 j) of the first, and the mean runs over the second half of the steps.
    """

    def loss(k: int) -> float:
        steps = np.arange(8 // k, 16 // k)
        return float(np.mean((1.0 - RATE) ** (2.0 * steps)))

    return loss(multiple) / loss(1) - 1.0


@pytest.mark.parametrize("largest", [1, 2, 4, 8])
def test_without_noise_the_size_is_the_largest_within_the_margin(largest: int) -> None:
    # No noise, so that the critical size is nothing and every larger size loses: by this much.
    beyond = kept_up(2 * largest) if largest < 8 else kept_up(8) + 0.02
    margin = 0.5 * (kept_up(largest) + beyond)
    rule = Branches(stretch=1e-6, margin=margin, first=4)
    result = trained(quadratic(0.0), rule, Coupling.NONE, 8 * 80)
    after_first = [size for _, size in result.trajectory][1]
    assert after_first == 8 * largest


def test_where_all_is_noise_the_largest_size_is_taken() -> None:
    # theta is near 0 after the first trial's wait: the noise scale is far beyond any size here.
    rule = Branches(margin=0.004, first=512)
    result = trained(quadratic(1.0), rule, Coupling.SQRT, 8 * 4096)
    assert result.batch_size_max >= 64
    assert next(size for _, size in result.trajectory) == 8


def test_branches_are_paid_for() -> None:
    rule = Branches(stretch=1e-6, margin=0.0, first=4)  # each trial ends with the second branch
    result = trained(quadratic(0.0), rule, Coupling.NONE, 8 * 700)
    points = 8  # after 4, 8, ... 512 of the user's steps; then the run is over
    assert result.batch_size_max == 8
    assert result.cost == result.samples == 8 * 700 + points * 2 * 128
    assert result.steps == 700 + points * (16 + 8)


@dataclass
class Told:
    """A run whose trials were made up."""

    losses: dict[int, float]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def trial(self, batch_size: int, samples: int) -> float:
        self.asked.append((batch_size, samples))
        return self.losses[batch_size]


def asked(losses: dict[int, float], **changes: Any) -> tuple[float, Told]:
    run = Told(losses)
    rule = Branches(margin=0.01, **changes).on(run)
    signals = simple_signals(total_samples=64.0 * 64, batch_size=64.0)
    decision, state = rule.decide(np.zeros(0, np.float32), signals, rule.initial_state())
    again, _ = rule.decide(np.zeros(0, np.float32), signals, state)
    assert float(again.log2_change) == 0.0  # due at twice the samples only
    return float(decision.log2_change), run


def test_the_first_that_falls_behind_ends_the_trials() -> None:
    change, run = asked({64: 2.0, 128: 1.9, 256: 1.93, 512: 1.0})
    assert change == pytest.approx(1.0)
    assert [size for size, _ in run.asked] == [64, 128, 256]
    assert len({samples for _, samples in run.asked}) == 1


@pytest.mark.parametrize(("critical", "change"), [(1, 0.0), (2, 0.0), (4, 1.0), (8, 1.0)])
def test_by_doubling_the_critical_size_has_to_be_more_than_twice_the_size(
    critical: int, change: float
) -> None:
    losses = {64 * k: 1.0 if k <= critical else 1.1 for k in (1, 2, 4, 8)}
    assert asked(losses, doubling=True)[0] == change
    assert asked(losses)[0] == math.log2(critical)


def test_lost_branches_are_not_followed() -> None:
    assert asked({64: math.inf, 128: math.inf})[0] == 0.0
    assert asked({64: 1.0, 128: math.nan})[0] == 0.0


def test_the_length_of_a_branch() -> None:
    assert Branches().samples(64, math.nan) == 16 * 64
    assert Branches().samples(64, 1e5) == 16 * 64
    assert Branches().samples(64, 1e6) == 3 * 16 * 64  # 3,000 samples, in units of 1,024


def test_without_a_run_it_stays() -> None:
    rule = resolve_policy("branches")
    signals = simple_signals(total_samples=1e6, batch_size=64.0)
    decision, _ = rule.decide(np.zeros(0, np.float32), signals, rule.initial_state())
    assert float(decision.log2_change) == 0.0
    assert "no copies" in decision.reasons[0]


@pytest.mark.parametrize("wrong", [{"stretch": 0.0}, {"margin": -1.0}, {"first": 0}])
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="Branches"):
        Branches(**wrong)  # type: ignore[arg-type]
