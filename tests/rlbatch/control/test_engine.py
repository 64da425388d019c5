"""The decision engine against its parts called one by one."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.errors import ConfigurationError
from rlbatch.observation import encode, initial_state
from rlbatch.policy.base import Decision
from rlbatch.signals.record import Signals
from rlbatch.testing import ScriptedPolicy, random_policy, random_run


def chunks(count: int = 6, seed: int = 0, **changes: Any) -> list[Signals]:
    rng = np.random.default_rng(seed)
    rows = [signals for _, signals in random_run((), rng, count)]
    return [dataclasses.replace(row, **changes) for row in rows]


def at(size: float, low: float = 8, high: float = 1000) -> Signals:
    row = chunks(1)[0]
    context = dataclasses.replace(row.context, min_batch_size=low, max_batch_size=high)
    return dataclasses.replace(row, batch_size=size, context=context)


def test_a_learned_policy_sees_the_encoders_observation() -> None:
    policy = random_policy(np.random.default_rng(1))
    engine = DecisionEngine(policy)
    encoder, state = initial_state(), policy.initial_state()
    for signals in chunks():
        applied = engine.decide(signals)
        observation, encoder = encode(signals, encoder)
        decision, state = policy.decide(observation, signals, state)
        np.testing.assert_array_equal(applied.observation, observation)
        assert applied.requested_log2_change == decision.log2_change
        assert applied.value == decision.value
        assert applied.probabilities is not None
        assert decision.probabilities is not None
        np.testing.assert_allclose(applied.probabilities, decision.probabilities)
        context = signals.context
        assert context.min_batch_size <= applied.batch_size <= context.max_batch_size


@pytest.mark.parametrize(
    ("size", "change", "expected"),
    [(32, 1.0, 64), (32, 0.5, 45), (8, -2.0, 8), (700, 1.0, 1000), (33, -1.0, 16), (9, 0.0, 9)],
)
def test_sizes_are_whole_and_within_the_limits(size: int, change: float, expected: int) -> None:
    applied = DecisionEngine(ScriptedPolicy((change,))).decide(at(size))
    assert applied.batch_size == expected
    assert applied.applied_log2_change == pytest.approx(math.log2(expected / size))
    assert applied.requested_log2_change == change
    clipped = not math.isclose(expected, size * 2**change, rel_tol=0.05)
    assert any("bounds" in reason for reason in applied.reasons) == clipped


def test_what_is_not_finite_or_enormous_still_gives_a_size() -> None:
    for change, expected in ((math.nan, 32), (1e300, 1000), (-1e300, 8)):
        engine = DecisionEngine(ScriptedPolicy((change,)))
        assert engine.decide(at(32)).batch_size == expected


def test_the_wrappers_do_what_the_configuration_says() -> None:
    script = ScriptedPolicy((3.0, 3.0, 3.0, 3.0))
    limited = DecisionEngine(script, EngineConfig(max_log2_change=1.0, cooldown=1))
    sizes = [32]
    for _ in range(4):
        sizes.append(limited.decide(at(sizes[-1])).batch_size)
    assert sizes == [32, 64, 64, 128, 128]
    shadow = DecisionEngine(script, EngineConfig(shadow=True)).decide(at(32))
    assert shadow.batch_size == 32
    assert shadow.requested_log2_change == 3.0
    assert any("shadow" in reason for reason in shadow.reasons)


class _Broken:
    needs_gradient_noise = False

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return ()

    def decide(self, observation: Any, signals: Signals, state: Any) -> tuple[Decision, Any]:
        return Decision(math.nan), state


def test_the_fall_back_decides_when_the_policy_does_not() -> None:
    config = EngineConfig(fallback=ScriptedPolicy((1.0,)))
    assert DecisionEngine(_Broken(), config).decide(at(32)).batch_size == 64
    assert DecisionEngine(_Broken()).decide(at(32)).batch_size == 32


def test_after_a_roll_back_the_change_counts_from_the_size_in_force() -> None:
    engine = DecisionEngine(ScriptedPolicy((0.0, 1.0)))
    stay = engine.decide(at(512), batch_size=32)
    assert (stay.batch_size_before, stay.batch_size) == (32, 32)
    assert any("rolled back" in reason for reason in stay.reasons)
    assert engine.decide(at(512), batch_size=32).batch_size == 64


def test_a_state_through_json_continues_the_same() -> None:
    rows = chunks(8)
    policy = random_policy(np.random.default_rng(1))
    config = EngineConfig(cooldown=2)
    whole, first = DecisionEngine(policy, config), DecisionEngine(policy, config)
    expected = [whole.decide(row) for row in rows]
    for row in rows[:4]:
        first.decide(row)
    second = DecisionEngine(policy, config)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert json.loads(json.dumps(state)) == state
    second.load_state_dict(state)
    for row, wanted in zip(rows[4:], expected[4:], strict=True):
        got = second.decide(row)
        np.testing.assert_array_equal(got.observation, wanted.observation)
        assert (got.batch_size, got.reasons) == (wanted.batch_size, wanted.reasons)


def test_a_state_of_another_kind_is_refused() -> None:
    engine = DecisionEngine(ScriptedPolicy(()))
    other = DecisionEngine(ScriptedPolicy(()), EngineConfig(cooldown=1))
    with pytest.raises(ConfigurationError, match="other wrappers"):
        other.load_state_dict(engine.state_dict())
    with pytest.raises(ConfigurationError, match="version 3 was expected"):
        engine.load_state_dict({**engine.state_dict(), "version": 7})
