"""Names of random tasks."""

from __future__ import annotations

import pytest

from rlbatch.envs.tasks.random_job import KINDS, RandomJob, parse
from rlbatch.errors import ConfigurationError


@pytest.mark.parametrize("prefix", list(KINDS))
def test_names_are_read_back(prefix: str) -> None:
    job = RandomJob(prefix, 7).fitted(0.012345678, 1.23456)
    assert parse(job.name) == job == RandomJob(prefix, 7, 0.01235, 1.235)
    assert parse(f"{prefix}:3") == RandomJob(prefix, 3)
    for wrong in (f"{prefix}:", f"{prefix}:x", f"{prefix}:1:2", f"{prefix}:1:a:b"):
        with pytest.raises(ConfigurationError, match=f"{prefix}:NUMBER"):
            parse(wrong)
    with pytest.raises(ConfigurationError, match=f"KIND:NUMBER .*kinds: .*{prefix}"):
        parse("digits:1")


def test_plans_differ_and_repeat() -> None:
    plans = [RandomJob("random", number).planned_steps() for number in range(24)]
    assert plans == [RandomJob("random", number).planned_steps() for number in range(24)]
    assert len(set(plans)) > 15
    assert min(plans) >= 45
    assert max(plans) <= 588
