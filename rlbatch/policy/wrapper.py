"""What all wrappers share: a policy around a policy."""

from __future__ import annotations

from typing import Any

from rlbatch.policy.base import Policy, noise_rate_of


class Wrapper:
    """A policy that changes what another policy asks for.

    Subclasses are frozen dataclasses whose first field is `policy`. A wrapper without memory
    passes the inner state through as it is.

    Attributes:
        policy: The inner policy.
    """

    policy: Policy

    @property
    def needs_gradient_noise(self) -> bool:
        """As the inner policy."""
        return self.policy.needs_gradient_noise

    @property
    def noise_rate(self) -> float:
        """As the inner policy."""
        return noise_rate_of(self.policy)

    @property
    def action_grid(self) -> tuple[float, ...] | None:
        """The actions that the inner policy's probabilities are of; None for rules."""
        return getattr(self.policy, "action_grid", None)

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        """Return the inner policy's state before the first decision."""
        return self.policy.initial_state(shape)
