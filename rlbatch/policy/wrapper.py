"""What all wrappers share: a policy around a policy."""

from __future__ import annotations

from typing import Any

from rlbatch.policy.base import Policy


class Wrapper:
    """A policy that changes what another policy asks for.

    Subclasses are frozen dataclasses whose first field is `policy`. A wrapper without memory
    passes the inner state through as it is.

    Attributes:
        policy: The inner policy.
        needs_gradient_noise: As the inner policy.
    """

    policy: Policy
    needs_gradient_noise: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs_gradient_noise", self.policy.needs_gradient_noise)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the inner policy's state before the first decision."""
        return self.policy.initial_state(shape)
