"""What all wrappers pass on from the policy inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from rlbatch.policy.base import Policy
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.cooldown import Cooldown
from rlbatch.policy.fallback import Fallback
from rlbatch.policy.rate_limit import RateLimited
from rlbatch.policy.shadow import Shadow
from rlbatch.testing import ScriptedPolicy, random_policy

SCRIPT = ScriptedPolicy((1.0,))
WRAPPERS: dict[str, Callable[[Policy], Any]] = {
    "bounds": Bounded,
    "cooldown": Cooldown,
    "fallback": lambda policy: Fallback(policy, SCRIPT),
    "rate limit": RateLimited,
    "shadow": Shadow,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapper_tells_what_the_policy_inside_needs_and_can_do(
    wrap: Callable[[Policy], Any],
) -> None:
    learned = random_policy(np.random.default_rng(0), action_grid=(-1, 0, 1))
    assert wrap(learned).needs_gradient_noise is True
    assert wrap(wrap(learned)).action_grid == (-1.0, 0.0, 1.0)
    assert wrap(SCRIPT).needs_gradient_noise is False
    assert wrap(SCRIPT).action_grid is None
    assert isinstance(wrap(learned), Policy)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapper_cannot_be_changed(wrap: Callable[[Policy], Any]) -> None:
    wrapper = wrap(SCRIPT)
    with pytest.raises(FrozenInstanceError):
        wrapper.policy = SCRIPT
    with pytest.raises((FrozenInstanceError, AttributeError)):
        wrapper.needs_gradient_noise = True
