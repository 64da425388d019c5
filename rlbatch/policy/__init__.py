"""Who decides: the policy protocol, its wrappers, the learned policy and its file."""

from rlbatch.policy.base import Decision, Policy

__all__ = ["Decision", "Policy"]
