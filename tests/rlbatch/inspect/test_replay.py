"""A recorded policy repeats itself; another one parts where it must."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlbatch.errors import EpisodeLogError
from rlbatch.inspect.reading import read_log
from rlbatch.inspect.replay import recorded_policy, recorded_wrappers, replay
from rlbatch.policy.registry import FOR_EPOCHS, resolve_policy
from rlbatch.testing.replay import replay as replay_signals
from tests.rlbatch.inspect.made import EXAMPLE, LOGS, make_log, make_record

RECORDED = {
    "example": (EXAMPLE, "default"),
    "live": (LOGS / "live", "goodput"),
    "ddp": (LOGS / "ddp", "goodput"),
    "keras": (LOGS / "keras", "goodput"),
}


@pytest.mark.parametrize(("folder", "name"), RECORDED.values(), ids=RECORDED.keys())
def test_the_recorded_policy_repeats_its_decisions(folder: Path, name: str) -> None:
    """If this fails after the policy or the observation changed: scripts/record_logs.py."""
    log = read_log(folder)
    assert log.run["policy"] == name
    made = list(replay(log, recorded_policy(log.run)))

    assert len(made) == sum(record.observation is not None for record in log.records)
    assert len(made) >= 6
    for one in made:
        assert one.same_request, f"line {one.record.index}"
        # Two ranks share a size, for which it is rounded afterwards.
        assert one.same_size or "ranks" in " ".join(one.record.reasons)
        # Another processor may round otherwise in the last bits.
        assert one.record.observation == pytest.approx(one.decision.observation, abs=1e-5)
        assert (one.record.probabilities is None) == (one.decision.probabilities is None)
        if one.record.probabilities is not None:
            assert one.record.probabilities == pytest.approx(one.decision.probabilities, abs=1e-4)


def test_the_live_log_holds_a_roll_back_limits_and_a_cooldown() -> None:
    log = read_log(LOGS / "live")
    reasons = " ".join(reason for record in log.records for reason in record.reasons)

    assert [record.event for record in log.records].count("rollback") == 1
    assert "rate limit" in reasons
    assert "cooldown" in reasons
    wrappers = recorded_wrappers(log.run, recorded_policy(log.run))
    assert (wrappers.max_log2_change, wrappers.cooldown, wrappers.shadow) == (1.0, 1, False)


def test_another_policy_is_asked_on_the_same_observations() -> None:
    log = read_log(EXAMPLE)
    policy = resolve_policy("goodput")

    made = list(replay(log, policy))

    expected = replay_signals(EXAMPLE, policy)  # without limits and rounding
    assert [one.decision.requested_log2_change for one in made] == [
        float(decision.log2_change) for _, decision in expected
    ]
    assert not all(one.same_request for one in made)


def test_fixed_stays() -> None:
    made = list(replay(read_log(EXAMPLE), resolve_policy("fixed:32")))

    assert {one.decision.batch_size for one in made} == {32}


def test_wrappers_are_read_from_the_settings() -> None:
    log = read_log(EXAMPLE)
    config = {"max_log2_change": "1.0", "cooldown": "0", "fallback": "fixed", "shadow": "True"}

    made = list(replay(replace(log, run={**log.run, "config": config}), recorded_policy(log.run)))

    assert all(one.decision.batch_size == one.record.batch_size_before for one in made)
    assert recorded_wrappers({"config": config}, resolve_policy("default")).fallback is not None


def test_the_usual_fallback_is_behind_learned_policies_alone() -> None:
    run = {"config": {"fallback": "auto"}}

    assert recorded_wrappers(run, resolve_policy("default")).fallback == resolve_policy(FOR_EPOCHS)
    assert recorded_wrappers(run, resolve_policy("goodput")).fallback is None
    assert recorded_wrappers({"config": {}}, resolve_policy("default")).fallback is None


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"policy": "default", "context": {}}, "no full context"),
        ({"policy": "default", "context": 3}, "no full context"),
        ({"policy": None}, "does not say what decided"),
        ({"policy": "no-such"}, "cannot be used"),
        ({"policy": "fixed:x"}, "cannot be used"),
        ({"policy": "/nowhere/policy.safetensors"}, "cannot be used"),
    ],
)
def test_what_cannot_be_replayed(run: dict[str, object], message: str) -> None:
    log = replace(make_log(make_record(0, observation=[0.0])), run=run)

    with pytest.raises(EpisodeLogError, match=message):
        list(replay(log, recorded_policy(log.run)))


def test_a_line_without_signals_is_named() -> None:
    head = json.loads((EXAMPLE / "run.json").read_text())
    log = replace(make_log(make_record(0, observation=[0.0])), run=head)

    with pytest.raises(EpisodeLogError, match="Decision 0 cannot be replayed: it lacks batch_size"):
        list(replay(log, resolve_policy("fixed")))
