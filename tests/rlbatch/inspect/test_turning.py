"""Turning points, verified by running the policy on a log that was changed by that much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlbatch.inspect import turning
from rlbatch.inspect.reading import RunLog, read_log
from rlbatch.inspect.replay import recorded_policy, run_context, signals_of
from rlbatch.inspect.turning import Situation, Turning, nearest, situations
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, encode, initial_state
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.network import Layer, Network
from tests.rlbatch.inspect.made import EXAMPLE

GRID = (-1.0, 0.0, 1.0)


def threshold_policy(feature: str, level: float) -> LearnedPolicy:
    """Return a policy that doubles where a feature is above a level, and else stays."""
    weight = np.zeros((3, OBSERVATION_SIZE), dtype=np.float32)
    weight[2, OBSERVATION_NAMES.index(feature)] = 100.0
    bias = np.array([-50.0, 100.0 * level, 0.0], dtype=np.float32)
    value = Layer(np.zeros((1, OBSERVATION_SIZE), np.float32), np.zeros(1, np.float32))
    return LearnedPolicy((Network((Layer(weight, bias),), (value,)),), GRID)


def situation_of(policy: LearnedPolicy, index: int, log: RunLog) -> Situation:
    for place, signals, before in situations(log):
        if place == index:
            observation, _ = encode(signals, before)
            made, _ = policy.decide(observation, signals, policy.initial_state())
            return Situation(signals, before, float(made.log2_change))
    raise AssertionError


def scaled(record: DecisionRecord, **factors: float) -> DecisionRecord:
    signals: dict[str, Any] = dict(record.signals)
    for name, factor in factors.items():
        signals[name] = signals[name] * factor
    return replace(record, signals=signals)


def decision(policy: LearnedPolicy, log: RunLog, index: int) -> float:
    """Return what a policy decides at a line, the log encoded from its beginning."""
    context, state = run_context(log.run), initial_state()
    *earlier, last = (signals_of(record, context) for record in log.records[: index + 1])
    for signals in earlier:
        _, state = encode(signals, state)
    observation, _ = encode(last, state)
    made, _ = policy.decide(observation, last, policy.initial_state())
    return float(made.log2_change)


def test_the_noise_scale_that_turns_a_decision() -> None:
    log = read_log(EXAMPLE)
    index = 14  # measured by then
    policy = threshold_policy("noise_vs_size", 0.0)  # doubles above the batch size
    situation = situation_of(policy, index, log)

    found = nearest(policy, situation)

    assert found is not None
    assert found.signal == "noise scale"

    def asked(factor: float) -> float:
        names = {"noise_trace": factor, "noise_trace_se": factor}
        records = tuple(scaled(record, **names) for record in log.records[: index + 1])
        return decision(policy, replace(log, records=records), index)

    assert asked(1.0) == situation.change == 0.0
    assert asked(found.factor) == found.change == 1.0
    assert asked(found.factor**0.98) == situation.change  # and it is the nearest


def test_the_loss_that_turns_a_decision() -> None:
    log = read_log(EXAMPLE)
    index = 9
    policy = threshold_policy("loss_vs_initial", -0.5)  # doubles above e^-1.5 of the first loss
    found = nearest(policy, situation_of(policy, index, log))

    assert found is not None
    assert found.signal == "training loss"
    first, here = (float(log.records[i].signals["train_loss"]) for i in (0, index))  # type: ignore[arg-type]
    assert found.factor == pytest.approx(np.exp(-1.5) * first / here, rel=0.01)


def test_the_cost_that_turns_a_decision() -> None:
    log = read_log(EXAMPLE)
    policy = threshold_policy("elasticity_x2", 0.5)
    situation = situation_of(policy, 3, log)
    observation, _ = encode(situation.signals, situation.before)
    elasticity = float(observation[OBSERVATION_NAMES.index("elasticity_x2")])

    found = nearest(policy, situation)

    assert found is not None
    assert found.signal == "step cost"
    assert found.factor == pytest.approx(0.5 / elasticity, rel=0.01)


def test_nothing_turns_a_policy_that_looks_at_nothing() -> None:
    policy = threshold_policy("noise_vs_size", 0.0)
    blind = Layer(
        np.zeros((3, OBSERVATION_SIZE), np.float32), np.array([0.0, 5.0, 0.0], np.float32)
    )
    policy = replace(policy, members=(Network((blind,), policy.members[0].value),))

    assert nearest(policy, situation_of(policy, 14, read_log(EXAMPLE))) is None


def test_the_shipped_policy_decides_otherwise_at_what_is_told() -> None:
    log = read_log(EXAMPLE)
    policy = recorded_policy(log.run)
    assert isinstance(policy, LearnedPolicy)
    told: list[Turning] = []
    for place, signals, before in situations(log):
        change = log.records[place].requested_log2_change
        found = nearest(policy, Situation(signals, before, change))
        if found is None:
            continue
        told.append(found)
        changed = turning._SIGNALS[found.signal]
        one = np.array([found.factor])
        rows = turning._repeated(signals, 1)
        state = type(before)(*(np.asarray(value)[None] for value in before))
        observation, _ = encode(*changed(rows, state, one))
        made, _ = policy.decide(
            observation, changed(rows, state, one)[0], policy.initial_state((1,))
        )
        assert float(np.asarray(made.log2_change)[0]) == found.change != change
    assert len(told) > 5
