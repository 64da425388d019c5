"""A run in which the fallback decided: what its log and `rlbatch inspect` say, and its replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlbatch.control.build import fallback_for
from rlbatch.control.decision_logger import DecisionLogger, Place, context_values
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.inspect.explain import Explainer, sentences
from rlbatch.inspect.overview import summary_lines
from rlbatch.inspect.reading import RunLog, read_log
from rlbatch.inspect.replay import replay
from rlbatch.inspect.series import points
from rlbatch.log.episode_log import EpisodeLog
from rlbatch.policy.registry import resolve_policy
from rlbatch.testing import simple_signals

SIZE = 2.0**19


def logged(folder: Path) -> RunLog:
    """Ten chunks of batches of half a million, decided by `default` with its fallback."""
    policy = resolve_policy("default")
    engine = DecisionEngine(policy, EngineConfig(fallback=fallback_for(policy)))
    run = simple_signals(batch_size=SIZE, base_batch_size=SIZE, max_batch_size=64 * SIZE)
    info = {"policy": "default", "config": {"fallback": "auto"}}
    log = EpisodeLog(folder, info | {"context": context_values(run.context)})
    logger = DecisionLogger()
    logger.open(log)
    for chunk in range(1, 11):
        steps = 10.0 * chunk
        seen = replace(run, total_steps=steps, total_samples=steps * SIZE, total_cost=20.0 * chunk)
        seen = replace(seen, train_loss=float(np.exp(-0.1 * chunk)))
        made = engine.decide(seen)
        place = Place(0.1 * chunk, int(steps))
        logger.decision(seen, made, place, event=made.event, learning_rate_factor=1.0)
    logger.close()
    return read_log(folder)


def test_the_log_says_that_and_why(tmp_path: Path) -> None:
    log = logged(tmp_path / "log")

    assert {record.event for record in log.records} == {"fallback"}
    assert "size is 1.00, in training -1.00 to 0.75" in log.records[0].reasons[-1]
    assert log.records[0].probabilities is not None
    assert not any("saving-ramp" in reason for reason in log.records[0].reasons)
    assert any("saving-ramp" in reason for reason in log.records[9].reasons)
    text = "\n".join(summary_lines(log, 200))
    assert "10 fallback" in text
    assert "size is 1.00, in training -1.00 to 0.75" in text


def test_a_decision_is_explained(tmp_path: Path) -> None:
    log = logged(tmp_path / "log")
    found = list(points(log))

    told = " ".join(sentences(log, found, 0, Explainer(log).why(found[0])))

    assert "the policy was not trusted with what it saw; the batch size stayed at 524,288" in told
    assert "in training -1.00 to 0.75" in told


def test_the_replay_falls_back_likewise(tmp_path: Path) -> None:
    log = logged(tmp_path / "log")

    made = list(replay(log, resolve_policy("default")))

    assert len(made) == 10
    assert all(one.same_request and one.same_size for one in made)
    assert all(one.decision.fell_back for one in made)
    assert not any(one.decision.fell_back for one in replay(log, resolve_policy("goodput")))
