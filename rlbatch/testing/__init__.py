"""Tests that a third party's policy can run too, and the random inputs for them.

`policy_contract` is imported by its full name, because it needs pytest.
"""

from rlbatch.testing.generators import one_run, random_context, random_policy, random_signals

__all__ = ["one_run", "random_context", "random_policy", "random_signals"]
