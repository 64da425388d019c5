"""The contract is worth something only if it catches what it forbids."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.signals.record import Signals
from rlbatch.testing import ScriptedPolicy, one_run, random_run, random_signals
from rlbatch.testing.generators import MAY_BE_MISSING
from rlbatch.testing.policy_contract import PolicyContract


class TestAnHonestPolicy(PolicyContract):
    def make_policy(self) -> Policy:
        return ScriptedPolicy((1.0, 0.0, -0.5))


@dataclass
class Base:
    needs_gradient_noise: bool = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return np.zeros(shape)

    def decide(self, observation: Observation, signals: Signals, state: Any) -> tuple[Any, Any]:
        change = np.zeros(np.shape(signals.batch_size))
        return self.answer(change, signals, state), state

    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        if np.ndim(change) == 0:
            return Decision(float(change), reasons=("because",))
        return Decision(change)


class Remembers(Base):
    calls = 0

    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        self.calls += 1
        return super().answer(change + self.calls, signals, state)


class UsesGlobalRandomness(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return super().answer(change + np.random.default_rng().normal(), signals, state)


class WritesIntoItsState(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        state += 1
        return super().answer(change, signals, state)


class WritesIntoTheSignals(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        signals.step_cost_curve[...] = 0
        return super().answer(change, signals, state)


class LetsMissingValuesThrough(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return super().answer(change + signals.val_loss, signals, state)


class AveragesOverRuns(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return super().answer(change + np.mean(np.log2(signals.batch_size)), signals, state)


class ForgetsTheReason(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return replace(super().answer(change, signals, state), reasons=())


class ForgetsTheShape(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return Decision(0.0, reasons=("because",))


class DoesNotNormalise(Base):
    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        chances = np.full((*np.shape(change), 2), 0.6, np.float32)
        return replace(super().answer(change, signals, state), probabilities=chances)


class KeepsADictionary(Base):
    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return {"step": np.zeros(shape)}


class StartsDifferentlyAlone(Base):
    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return np.full(shape, float(len(shape)))

    def answer(self, change: Any, signals: Signals, state: Any) -> Decision:
        return super().answer(change + state, signals, state)


SOUND = ("test_decisions_are_sound_whatever_was_measured", {"seed": 0, "missing": 0.3})


@pytest.mark.parametrize(
    ("policy", "test", "arguments"),
    [
        (Remembers, "test_a_decision_is_pure", {}),
        (Remembers, "test_runs_do_not_mix", {}),
        (UsesGlobalRandomness, "test_a_decision_is_pure", {}),
        (WritesIntoItsState, "test_a_decision_is_pure", {}),
        (WritesIntoTheSignals, "test_a_decision_is_pure", {}),
        (LetsMissingValuesThrough, *SOUND),
        (AveragesOverRuns, "test_an_array_of_runs_is_decided_as_each_run_alone", {"missing": 0.0}),
        (ForgetsTheReason, *SOUND),
        (ForgetsTheShape, *SOUND),
        (DoesNotNormalise, *SOUND),
        (KeepsADictionary, "test_state_survives_a_checkpoint", {}),
        (StartsDifferentlyAlone, "test_a_single_run_starts_as_the_first_of_many", {}),
    ],
)
def test_each_vice_is_caught(policy: Any, test: str, arguments: dict[str, Any]) -> None:
    class Contract(PolicyContract):
        def make_policy(self) -> Policy:
            return policy()

    with pytest.raises((AssertionError, ValueError)):
        getattr(Contract(), test)(**arguments)


def test_signals_are_legal() -> None:
    signals = random_signals((500,), np.random.default_rng(0), missing=0.5)
    context = signals.context
    assert np.all(context.min_batch_size <= np.asarray(context.base_batch_size))
    assert np.all(context.base_batch_size <= np.asarray(context.max_batch_size))
    assert np.all(signals.batch_size >= np.asarray(context.min_batch_size))
    assert np.all(signals.batch_size <= np.asarray(context.max_batch_size))
    assert np.all(np.diff(signals.step_cost_curve, axis=-1) >= 0)
    aims = np.stack([context.target_loss, context.budget, context.planned_samples])
    assert np.all(np.isfinite(aims).sum(axis=0) == 1)
    assert np.all(np.isfinite(aims).any(axis=1))
    for name in MAY_BE_MISSING:
        assert 0.4 < np.isnan(getattr(signals, name)).mean() < 0.6


def test_a_run_adds_up() -> None:
    run = random_run((4,), np.random.default_rng(0), 5)
    steps = sum(np.asarray(signals.steps) for _, signals in run)
    samples = sum(np.multiply(s.steps, s.batch_size) for _, s in run)
    observation, last = run[-1]
    np.testing.assert_allclose(last.total_steps, steps)
    np.testing.assert_allclose(last.total_samples, samples)
    assert np.isfinite(observation).all()
    assert all(signals.context is last.context for _, signals in run)


def test_one_run_is_cut_out_with_plain_floats() -> None:
    signals = random_signals((2, 3), np.random.default_rng(0), missing=0.0)
    one = one_run(signals, (1, 2))
    assert one.train_loss == np.asarray(signals.train_loss)[1, 2]
    assert isinstance(one.train_loss, float)
    assert isinstance(one.context.momentum, float)
    np.testing.assert_array_equal(one.step_cost_curve, signals.step_cost_curve[1, 2])
