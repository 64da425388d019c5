import numpy as np
import pytest

from rlbatch.agents.rules.goodput import Goodput
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.signals.record import COST_CURVE_SIZES
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)


class TestContract(PolicyContract):
    def make_policy(self) -> Policy:
        return Goodput()


class TestContractAboveTheBase(PolicyContract):
    def make_policy(self) -> Policy:
        return Goodput(decay=0.0, hysteresis=0.0, below_base=False)


def target(policy: Goodput, **changes: float) -> float:
    signals = simple_signals(**changes)
    decision, _ = policy.decide(NOTHING, signals, policy.initial_state())
    return float(signals.batch_size * 2.0**decision.log2_change)


@pytest.mark.parametrize("noise_scale", [16.0, 256.0, 4096.0])
@pytest.mark.parametrize("flat_until", [8.0, 128.0])
def test_finds_the_optimum_that_calculus_gives(noise_scale: float, flat_until: float) -> None:
    """B / ((1 + B / b) (B + phi)) is largest at B = sqrt(b phi)."""
    curve = np.log2(1.0 + COST_CURVE_SIZES / flat_until)
    found = target(Goodput(), noise_trace=noise_scale, step_cost_curve=curve, batch_size=1.0)  # pyright: ignore[reportArgumentType]
    # 50 candidates over 16 doublings, and a curve that is linear between powers of two
    assert abs(np.log2(found) - np.log2(np.sqrt(flat_until * noise_scale))) < 0.6


def test_equals_a_slow_search_over_its_candidates() -> None:
    sizes = [round(2.0 ** (10 * i / 49)) for i in range(50)]
    curve = simple_signals().step_cost_curve

    def goodput(size: float) -> float:
        step_cost = 2.0 ** np.interp(np.log2(size), np.arange(17), curve)
        return size / step_cost * (300.0 + 64.0) / (300.0 + size)

    best = max(sizes, key=goodput)
    assert goodput(best) > 1.05 * goodput(64.0)
    found = target(Goodput(), noise_trace=600.0, grad_sqr=2.0, max_batch_size=1024.0)
    assert found == pytest.approx(best)


@pytest.mark.parametrize(("hysteresis", "moves"), [(0.0, True), (0.05, False), (0.001, True)])
def test_small_gains_are_not_worth_a_change(hysteresis: float, moves: bool) -> None:
    # The optimum for phi = 128 is sqrt(64 * 128) = 90.5: at 64 the goodput is 2 % below it.
    assert (target(Goodput(hysteresis=hysteresis), noise_trace=128.0) != 64.0) == moves


def test_hand_computed_gain_decides_about_the_change() -> None:
    """Cost per sample constant above 64, so only efficiency counts: (phi + 64) / (phi + 32)."""
    curve = np.log2(COST_CURVE_SIZES)
    limits = {"min_batch_size": 32.0, "max_batch_size": 64.0, "noise_trace": 96.0}
    gain = (96 + 64) / (96 + 32)  # 1.25
    for hysteresis, expected in ((gain - 1.01, 32.0), (gain - 0.99, 64.0)):
        found = target(Goodput(hysteresis=hysteresis), step_cost_curve=curve, **limits)  # pyright: ignore[reportArgumentType]
        assert found == pytest.approx(expected)


def test_a_negative_gradient_estimate_makes_every_size_equally_efficient() -> None:
    assert target(Goodput(), grad_sqr=-3.0, max_batch_size=4096.0) == pytest.approx(4096)


def test_without_noise_the_cheapest_step_is_best() -> None:
    assert target(Goodput(), noise_trace=0.0, min_batch_size=4.0) == pytest.approx(4)
    assert target(Goodput(below_base=False), noise_trace=0.0) == pytest.approx(64)


def test_stays_until_something_was_measured() -> None:
    assert target(Goodput(), noise_trace=np.nan, grad_sqr=np.nan) == 64.0


def test_forgets_per_step_and_scale() -> None:
    """Two chunks of 3 steps at twice the base: weights (1 - d) d and (1 - d), d = 0.9 ** 6."""
    policy = Goodput(decay=0.9)
    state = policy.initial_state()
    for trace in (10.0, 40.0):
        signals = simple_signals(batch_size=128.0, steps=3.0, noise_trace=trace)
        _, state = policy.decide(NOTHING, signals, state)
    decay = 0.9**6
    total, weight = state[0]
    assert total / weight == pytest.approx((decay * 10.0 + 40.0) / (decay + 1.0))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"decay must be in \[0, 1\); got 1"):
        Goodput(decay=1)
    with pytest.raises(ConfigurationError, match="hysteresis must not be negative"):
        Goodput(hysteresis=-0.1)
