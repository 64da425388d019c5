"""The fallback of the shipped policies: not in ordinary runs, and in strange ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbatch.control.build import fallback_for, make_engine
from rlbatch.control.config import ControllerConfig
from rlbatch.control.engine import DecisionEngine, EngineConfig
from rlbatch.policy.registry import FOR_EPOCHS, PRETRAINED
from tests.rlbatch.policy.test_shipped import POLICIES, RUNS, SINGLE, Run


def guarded(name: str) -> DecisionEngine:
    policy = POLICIES[name]
    return DecisionEngine(policy, EngineConfig(fallback=fallback_for(policy)))


@pytest.mark.parametrize("name", PRETRAINED)
@pytest.mark.parametrize("recorded", SINGLE)
def test_ordinary_runs_are_the_policys_own(name: str, recorded: str) -> None:
    engine, alone = guarded(name), DecisionEngine(POLICIES[name])

    for chunk in RUNS[recorded]:
        made = engine.decide(chunk)
        assert made.event == "decision"
        assert made.batch_size == alone.decide(chunk).batch_size


def huge(planned: float = np.nan) -> Run:
    """A recorded run as if of batches of half a million tokens."""
    scale = 2.0**15
    return [
        replace(
            chunk,
            batch_size=chunk.batch_size * scale,
            total_samples=chunk.total_samples * scale,
            context=replace(
                chunk.context,
                base_batch_size=chunk.context.base_batch_size * scale,
                max_batch_size=chunk.context.max_batch_size * scale,
                planned_samples=planned,
            ),
        )
        for chunk in RUNS["signals-live-0"]
    ]


def test_batches_of_half_a_million_are_strange_and_held() -> None:
    engine, strange = guarded("default"), 0

    for chunk in huge():
        made = engine.decide(chunk)
        if chunk.batch_size >= 2**17:
            strange += 1
            assert made.event == "fallback"
            assert made.batch_size == chunk.batch_size
            assert "size is 1.00, in training -1.00 to 0.75" in made.reasons[-1]
    assert strange > 5


def test_a_strange_run_of_known_length_is_ramped() -> None:
    length = float(huge()[-1].total_samples)
    engine, sizes = guarded("default"), list[float]()

    for chunk in huge(length):
        size = sizes[-1] if sizes else float(chunk.context.base_batch_size)
        made = engine.decide(replace(chunk, batch_size=size))
        sizes.append(made.batch_size)
    base = float(huge()[0].context.base_batch_size)
    assert sizes[3] == base
    assert sizes[-1] >= 2 * base


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("default", {}, True),
        ("default", {"fallback": None}, False),
        ("default", {"fallback": "fixed"}, True),
        (FOR_EPOCHS, {}, False),
    ],
)
def test_a_controller_falls_back_unless_told_not_to(
    name: str, settings: dict[str, Any], expected: bool
) -> None:
    engine = make_engine(POLICIES[name], ControllerConfig(target_loss=0.1, **settings))

    assert engine.decide(huge()[-1]).fell_back is expected


def test_a_controller_estimates_the_return_only_to_show_it(tmp_path: Path) -> None:
    silent = make_engine(POLICIES["default"], ControllerConfig(target_loss=0.1))
    told = make_engine(POLICIES["default"], ControllerConfig(target_loss=0.1, log_dir=tmp_path))
    first, second = (engine.decide(huge()[0]) for engine in (silent, told))

    assert first.value is None
    assert second.value is not None
    assert (first.batch_size, first.probabilities) == (second.batch_size, second.probabilities)
