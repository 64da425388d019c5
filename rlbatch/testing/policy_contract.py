"""What every policy must keep to, as tests.

Subclass it in a test module, and pytest runs the whole contract on your policy:

    class TestMyPolicy(PolicyContract):
        def make_policy(self) -> Policy:
            return MyPolicy(threshold=0.3)
"""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.state import pack_state, unpack_state
from rlbatch.signals.record import Signals
from rlbatch.testing.generators import one_run, random_run

Run = list[tuple[Observation, Signals]]

CHUNKS = 12
SHAPE = (2, 3)


class PolicyContract:
    """Tests of the `Policy` protocol; `make_policy` says of what."""

    def make_policy(self) -> Policy:
        """Return the policy under test; equal at every call."""
        raise NotImplementedError("Override make_policy in the subclass.")

    def test_it_is_a_policy(self) -> None:
        """The protocol's methods are there, and the flag is a plain bool."""
        policy = self.make_policy()
        _require(isinstance(policy, Policy), "lacks a part of rlbatch.policy.Policy")
        _require(
            isinstance(policy.needs_gradient_noise, bool), "needs_gradient_noise must be a bool"
        )

    @pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("seed", range(8))
    def test_decisions_are_sound_whatever_was_measured(self, seed: int, missing: float) -> None:
        """Finite, of the runs' shape, probabilities that sum to one, reasons for single runs."""
        for shape in ((), SHAPE):
            run = random_run(shape, np.random.default_rng(seed), CHUNKS, missing)
            for decision in play(self.make_policy(), run, shape):
                _check_decision(decision, shape)

    def test_a_decision_is_pure(self) -> None:
        """The same inputs give the same output, and none of them is touched."""
        for shape in ((), SHAPE):
            policy = self.make_policy()
            state = policy.initial_state(shape)
            for observation, signals in random_run(shape, np.random.default_rng(1), CHUNKS):
                before = copy.deepcopy((observation, signals, state))
                first, after = policy.decide(observation, signals, state)
                again, _ = policy.decide(*copy.deepcopy(before))
                fresh, _ = self.make_policy().decide(*copy.deepcopy(before))
                _check_untouched(before, (observation, signals, state))
                _check_same(first, again, "a second call")
                _check_same(first, fresh, "another instance")
                state = after

    def test_runs_do_not_mix(self) -> None:
        """A run's decisions do not depend on another run that the same object decides for."""
        first, second = (random_run((), np.random.default_rng(seed), CHUNKS) for seed in (2, 3))
        policy = self.make_policy()
        alone = play(policy, first, ())
        state, other = policy.initial_state(), policy.initial_state()
        for expected, one, two in zip(alone, first, second, strict=True):
            decision, state = policy.decide(*one, state)
            _, other = policy.decide(*two, other)
            _check_same(decision, expected, "a run beside another one")

    def test_state_survives_a_checkpoint(self) -> None:
        """Through JSON and back after every chunk, nothing changes."""
        for shape in ((), SHAPE):
            run = random_run(shape, np.random.default_rng(4), CHUNKS)
            policy = self.make_policy()
            state = policy.initial_state(shape)
            for (observation, signals), expected in zip(run, play(policy, run, shape), strict=True):
                state = unpack_state(json.loads(json.dumps(pack_state(state))))
                decision, state = policy.decide(observation, signals, state)
                _check_same(decision, expected, "a resumed run")

    @pytest.mark.parametrize("missing", [0.0, 0.3])
    def test_an_array_of_runs_is_decided_as_each_run_alone(self, missing: float) -> None:
        """Entry by entry, including what the state starts with."""
        run = random_run(SHAPE, np.random.default_rng(5), CHUNKS, missing)
        policy = self.make_policy()
        start = policy.initial_state(SHAPE)
        together = play(policy, run, SHAPE)
        for index in np.ndindex(SHAPE):
            state = _one_state(start, index)
            for (observation, signals), many in zip(run, together, strict=True):
                one, state = policy.decide(observation[index], one_run(signals, index), state)
                _check_entry(one, many, index)

    def test_a_single_run_starts_as_the_first_of_many(self) -> None:
        """So that an evaluation does not depend on how many runs are done side by side."""
        run = random_run((3,), np.random.default_rng(6), CHUNKS)
        policy = self.make_policy()
        alone = [(observation[0], one_run(signals, (0,))) for observation, signals in run]
        for one, many in zip(play(policy, alone, ()), play(policy, run, (3,)), strict=True):
            _check_entry(one, many, (0,))

    @pytest.mark.parametrize("seed", range(4))
    def test_bounds_hold_when_it_is_wrapped(self, seed: int) -> None:
        """`Bounded` keeps every request inside of the context's limits."""
        run = random_run(SHAPE, np.random.default_rng(seed), CHUNKS)
        for (_, signals), decision in zip(
            run, play(Bounded(self.make_policy()), run, SHAPE), strict=True
        ):
            size = signals.batch_size * 2.0 ** np.asarray(decision.log2_change)
            inside = (size >= signals.context.min_batch_size * (1 - 1e-9)) & (
                size <= signals.context.max_batch_size * (1 + 1e-9)
            )
            _require(bool(inside.all()), f"left the bounds: {size}")


def play(policy: Policy, run: Run, shape: tuple[int, ...]) -> list[Decision]:
    """Return the policy's decisions along a run."""
    state = policy.initial_state(shape)
    decisions: list[Decision] = []
    for observation, signals in run:
        decision, state = policy.decide(observation, signals, state)
        decisions.append(decision)
    return decisions


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_decision(decision: Decision, shape: tuple[int, ...]) -> None:
    change = np.asarray(decision.log2_change)
    _require(change.shape == shape, f"log2_change has shape {change.shape}, the runs {shape}")
    _require(bool(np.isfinite(change).all()), f"log2_change is not finite: {change}")
    if decision.value is not None:
        value = np.asarray(decision.value)
        _require(value.shape == shape, f"value has shape {value.shape}, the runs {shape}")
        _require(bool(np.isfinite(value).all()), f"value is not finite: {value}")
    if decision.probabilities is not None:
        chances = decision.probabilities
        _require(chances.shape[:-1] == shape, f"probabilities have shape {chances.shape}")
        _require(bool((chances >= 0).all()), "a probability is negative")
        np.testing.assert_allclose(chances.sum(axis=-1), 1.0, rtol=1e-5)
    if shape == ():
        _require(isinstance(decision.log2_change, float), "a single run's change must be a float")
        _require(len(decision.reasons) > 0, "a single run's decision needs a reason")
    _require(all(decision.reasons), "a reason is empty")


def _check_same(one: Decision, other: Decision, what: str) -> None:
    for name in ("log2_change", "probabilities", "value"):
        ours, theirs = getattr(one, name), getattr(other, name)
        _require((ours is None) == (theirs is None), f"{what} has another {name}")
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{what} has another {name}")
    _require(one.reasons == other.reasons, f"{what} has other reasons")


def _check_entry(one: Decision, many: Decision, index: tuple[int, ...]) -> None:
    """Compare to rounding: NumPy may add up in another order for arrays of another shape."""
    where = f"run {index} is decided otherwise among others"
    for name, tolerance in (("log2_change", 1e-9), ("probabilities", 1e-5), ("value", 1e-4)):
        ours, theirs = getattr(one, name), getattr(many, name)
        _require((ours is None) == (theirs is None), f"{where}: {name}")
        if ours is not None:
            np.testing.assert_allclose(
                ours, theirs[index], rtol=tolerance, atol=tolerance, err_msg=f"{where}: {name}"
            )


def _check_untouched(before: Any, after: Any) -> None:
    """Compare nested tuples, dataclasses and arrays; NaN equals NaN."""
    if isinstance(before, tuple):
        for one, other in zip(before, after, strict=True):
            _check_untouched(one, other)
    elif isinstance(before, Signals) or hasattr(before, "__dataclass_fields__"):
        for field in fields(before):
            _check_untouched(getattr(before, field.name), getattr(after, field.name))
    else:
        np.testing.assert_array_equal(before, after, err_msg="decide changed its inputs")


def _one_state(state: Any, index: tuple[int, ...]) -> Any:
    """Return one run's part of a state; plain numbers are shared by all runs."""
    if isinstance(state, tuple | list):
        return tuple(_one_state(part, index) for part in state)
    return np.asarray(state[index]) if isinstance(state, np.ndarray) and state.ndim else state
