"""Tests that a third party's policy can run too, and the random inputs for them.

`rlbatch.testing.policy_contract` is imported by its full name, because it needs pytest.
"""

from rlbatch.testing.divisible import check_divisible
from rlbatch.testing.generators import (
    one_run,
    random_context,
    random_policy,
    random_run,
    random_signals,
    simple_signals,
)
from rlbatch.testing.scripted import ScriptedPolicy

__all__ = [
    "ScriptedPolicy",
    "check_divisible",
    "one_run",
    "random_context",
    "random_policy",
    "random_run",
    "random_signals",
    "simple_signals",
]
