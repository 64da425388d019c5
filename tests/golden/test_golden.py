"""Recorded observations and decisions: what a refactoring must not change.

`scripts/make_golden.py` wrote the data, from live, simulated and random runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rlbatch import observation
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Signals

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_golden

FILES = sorted(path.name for path in make_golden.DATA.glob("signals-*.npz"))
# The last bits of a logarithm depend on the processor; single-precision ones of order one do not.
CLOSE = 2e-6


@pytest.fixture(params=FILES)
def recorded(request: pytest.FixtureRequest) -> tuple[list[Signals], dict[str, np.ndarray]]:
    signals = make_golden.unstack(dict(np.load(make_golden.DATA / request.param)))
    decided = np.load(make_golden.DATA / request.param.replace("signals-", "decided-"))
    return signals, dict(decided)


def test_there_are_recordings_of_a_few_hundred_chunks() -> None:
    chunks = [len(np.load(make_golden.DATA / name)["batch_size"].ravel()) for name in FILES]

    assert sum(chunks) > 500
    assert any("live" in name for name in FILES)


def test_observations_are_as_recorded_name_by_name(
    recorded: tuple[list[Signals], dict[str, np.ndarray]],
) -> None:
    signals, decided = recorded
    seen = make_golden.observations(signals)

    for column, name in enumerate(decided["names"]):
        now = seen[..., observation.OBSERVATION_NAMES.index(str(name))]
        np.testing.assert_allclose(
            now, decided["observations"][..., column], rtol=0, atol=CLOSE, err_msg=str(name)
        )


@pytest.mark.parametrize("name", make_golden.POLICIES)
def test_policies_decide_as_recorded(
    recorded: tuple[list[Signals], dict[str, np.ndarray]], name: str
) -> None:
    signals, decided = recorded
    policy = resolve_policy(name)
    now = make_golden.changes(policy, signals, make_golden.observations(signals))

    np.testing.assert_allclose(now, decided[f"change.{name}"], rtol=0, atol=1e-9)
    if f"size.{name}" in decided:
        sizes = make_golden.applied_sizes(resolve_policy(name), signals)
        np.testing.assert_array_equal(sizes, decided[f"size.{name}"])
