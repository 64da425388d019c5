"""Recorded observations and decisions: what a refactoring must not change.

`tests/golden/recordings.py` wrote the data, from live, simulated and random runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from rlbatch import observation
from rlbatch.policy.registry import resolve_policy
from rlbatch.signals.record import Signals
from tests.golden import recordings

FILES = sorted(path.name for path in recordings.DATA.glob("signals-*.npz"))
# The last bits of a logarithm depend on the processor; single-precision ones of order one do not.
CLOSE = 2e-6


@dataclass(frozen=True)
class Recorded:
    """A file's signals, what was decided by them, and their observations as they are now."""

    signals: list[Signals]
    decided: dict[str, np.ndarray]
    observations: np.ndarray


@pytest.fixture(params=FILES, scope="module")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    signals = recordings.unstack(dict(np.load(recordings.DATA / request.param)))
    decided = np.load(recordings.DATA / request.param.replace("signals-", "decided-"))
    now = recordings.observations(signals)
    now.setflags(write=False)
    return Recorded(signals, dict(decided), now)


def test_there_are_recordings_of_a_few_hundred_chunks() -> None:
    chunks = [len(np.load(recordings.DATA / name)["batch_size"].ravel()) for name in FILES]

    assert sum(chunks) > 500
    assert any("live" in name for name in FILES)


def test_observations_are_as_recorded_name_by_name(recorded: Recorded) -> None:
    decided = recorded.decided
    for column, name in enumerate(decided["names"]):
        now = recorded.observations[..., observation.OBSERVATION_NAMES.index(str(name))]
        np.testing.assert_allclose(
            now, decided["observations"][..., column], rtol=0, atol=CLOSE, err_msg=str(name)
        )


@pytest.mark.parametrize("name", recordings.POLICIES)
def test_policies_decide_as_recorded(recorded: Recorded, name: str) -> None:
    signals, decided = recorded.signals, recorded.decided
    policy = resolve_policy(name)
    now = recordings.changes(policy, signals, recorded.observations)

    np.testing.assert_allclose(now, decided[f"change.{name}"], rtol=0, atol=1e-9)
    if f"size.{name}" in decided:
        sizes = recordings.applied_sizes(resolve_policy(name), signals)
        np.testing.assert_array_equal(sizes, decided[f"size.{name}"])
