import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from rlbatch.agents.rules.seesaw import Seesaw
from rlbatch.agents.rules.seesaw_noise import SeesawNoise
from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy.base import Policy
from rlbatch.policy.state import pack_state, unpack_state
from rlbatch.testing import simple_signals
from rlbatch.testing.policy_contract import PolicyContract

NOTHING = np.zeros(OBSERVATION_SIZE, np.float32)
NAN = float("nan")


class TestSeesaw(PolicyContract):
    def make_policy(self) -> Policy:
        return Seesaw()


class TestSeesawThatDoubles(PolicyContract):
    def make_policy(self) -> Policy:
        return Seesaw(cut=2.0)


class TestSeesawNoise(PolicyContract):
    def make_policy(self) -> Policy:
        return SeesawNoise()


@pytest.mark.parametrize(
    ("policy", "factors", "sizes"),
    [
        # A warm-up asks for nothing; then 1 / 0.9 is one cut of 1.1, 1 / 0.8 two.
        (Seesaw(), [0.1, 0.5, 1, 0.95, 0.9, 0.8], [64, 64, 64, 64, 70.4, 77.44]),
        (Seesaw(cut=2), [1, 0.51, 0.5, 0.25, 0.2, 0.125], [64, 64, 128, 256, 256, 512]),
        # The peak is what was reached: a warm-up to 3 times the first rate, half of it at 1.5.
        (Seesaw(cut=2), [1, 3, 1.6, 1.5, 0.75], [64, 64, 64, 128, 256]),
        # A rate that rises again, as with restarts, takes the growth back.
        (Seesaw(cut=2), [1, 0.25, 1], [64, 256, 64]),
        # The end of a schedule at 0, and a factor that is not known.
        (Seesaw(cut=2), [1, 0.0], [64, 1024]),
        (Seesaw(cut=2), [1, NAN, 0.5], [64, 64, 128]),
    ],
)
def test_decision_sequences(policy: Policy, factors: list[float], sizes: list[float]) -> None:
    state, size = policy.initial_state(), 64.0
    for factor, expected in zip(factors, sizes, strict=True):
        signals = simple_signals(batch_size=size, schedule_factor=factor, max_batch_size=1024.0)
        decision, state = policy.decide(NOTHING, signals, state)
        state = unpack_state(pack_state(state))  # a run that resumes here goes on alike
        size *= 2.0**decision.log2_change
        assert size == pytest.approx(expected)


@pytest.mark.parametrize(("exponent", "power"), [(0.5, 0.5), (1.0, 0.0)])
def test_coupled_rates_are_those_of_the_source(exponent: float, power: float) -> None:
    """With `sqrt` the applied rate is cut by sqrt(a), with `linear` (SGD) not at all."""
    signals = simple_signals(schedule_factor=0.25)
    policy = Seesaw(cut=2)
    decision, _ = policy.decide(NOTHING, signals, (np.array(1.0),))
    growth = 2.0 ** float(decision.log2_change)
    assert 0.25 * growth**exponent == pytest.approx(0.25**power)
    assert growth == pytest.approx(4.0)


def test_follows_a_cosine_as_the_source_places_its_cuts() -> None:
    """Cut k of a half cosine to f with a warm-up W is at W + (T-W) acos(2(a^-k - f)/(1-f) - 1)/pi.

    The formula is the source's; here the cuts are found by following torch's scheduler.
    """
    total, warm_up, floor, cut = 10_000, 1_000, 0.1, 1.1

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        angle = math.pi * (step - warm_up) / (total - warm_up)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LambdaLR(optimizer, factor)
    policy, size, found = Seesaw(cut), 64.0, []
    state = policy.initial_state()
    for step in range(1, total + 1):
        optimizer.step()
        scheduler.step()
        signals = simple_signals(batch_size=size, schedule_factor=scheduler.get_last_lr()[0])
        decision, state = policy.decide(NOTHING, signals, state)
        if decision.log2_change > 1e-6:  # less is rounding
            found.append(step)
            size *= 2.0**decision.log2_change
    wanted = [
        warm_up + (total - warm_up) * math.acos(2 * (cut**-k - floor) / (1 - floor) - 1) / math.pi
        for k in range(1, 25)
    ]
    assert len(found) == 24
    np.testing.assert_allclose(found, wanted, atol=1.0)
    assert size / 64 == pytest.approx(9.85, abs=0.01)


def test_runs_side_by_side_have_their_own_peaks() -> None:
    policy = Seesaw(cut=2)
    state = policy.initial_state((2,))
    changes = []
    for factors in ([1.0, 0.25], [0.5, 0.5], [0.25, 0.125]):
        signals = simple_signals(
            batch_size=np.full(2, 64.0),
            schedule_factor=np.array(factors),
        )
        decision, state = policy.decide(NOTHING, signals, state)
        changes.append(decision.log2_change)
    np.testing.assert_allclose(changes, [[0, 0], [1, 0], [2, 2]])


@pytest.mark.parametrize(
    ("policy", "seen", "sizes"),
    [
        # (factor, tr(Sigma), |G|^2): growth as Seesaw up to the noise scale of 150
        (
            SeesawNoise(2, 1, 0),
            [(1, 150, 1), (0.5, 150, 1), (0.25, 150, 1), (0.125, 150, 1)],
            [64, 128, 150, 150],
        ),
        # theta doubles the limit; a falling noise scale shrinks nothing, a rising one lets on
        (
            SeesawNoise(2, 2, 0),
            [(0.25, 100, 1), (0.25, 10, 1), (0.25, 120, 1), (0.25, 1000, 1)],
            [64, 64, 64, 64],  # the first factor is the peak
        ),
        (
            SeesawNoise(2, 2, 0),
            [(1, 9, 1), (0.25, 100, 1), (0.25, 10, 1), (0.25, 120, 1), (0.25, 1000, 1)],
            [64, 200, 200, 240, 256],
        ),
        # below the user's size the noise scale has no say; unmeasured, nothing grows
        (SeesawNoise(2, 1, 0), [(1, 9, 1), (0.5, 9, 1)], [64, 64]),
        (SeesawNoise(2, 1, 0), [(1, NAN, NAN), (0.5, NAN, NAN), (0.5, 80, 1)], [64, 64, 80]),
        # a |G|^2 that is not positive is below the noise: no limit but Seesaw's
        (SeesawNoise(2, 1, 0), [(1, 9, 1), (0.5, 9, -1)], [64, 128]),
        # running means apart: (0.5 * 64 + 160) / (0.5 + 1) over |G|^2 = 1
        (SeesawNoise(2, 1, 0.5), [(1, 64, 1), (0.125, 160, 1)], [64, 128]),
    ],
)
def test_noise_sequences(
    policy: Policy, seen: list[tuple[float, float, float]], sizes: list[float]
) -> None:
    state, size = policy.initial_state(), 64.0
    for (factor, trace, grad_sqr), expected in zip(seen, sizes, strict=True):
        signals = simple_signals(
            batch_size=size, schedule_factor=factor, noise_trace=trace, grad_sqr=grad_sqr
        )
        decision, state = policy.decide(NOTHING, signals, state)
        size *= 2.0**decision.log2_change
        assert size == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        (Seesaw, {"cut": 1.0}, "cut must be above 1; got 1.0"),
        (SeesawNoise, {"cut": 0.5}, "cut must be above 1"),
        (SeesawNoise, {"theta": 0.0}, "theta must be above 0"),
        (SeesawNoise, {"decay": 1.0}, r"decay must be in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(
    rule: type, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        rule(**settings)
