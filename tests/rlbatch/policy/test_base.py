"""The protocol: what conforms, to Python and to a type checker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rlbatch.policy.base import Decision, Observation, Policy
from rlbatch.policy.bounds import Bounded
from rlbatch.signals.record import Signals


class _Decides:
    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return ()

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        return Decision(0.0, reasons=("stay",)), state


class ByClass(_Decides):
    needs_gradient_noise = True


class ByInstance(_Decides):
    def __init__(self) -> None:
        self.needs_gradient_noise = True


class ByProperty(_Decides):
    @property
    def needs_gradient_noise(self) -> bool:
        return True


@dataclass(frozen=True)
class ByFrozenField(_Decides):
    needs_gradient_noise: bool = True


# The annotation is the test: the type checker refuses what does not conform.
FORMS: list[Policy] = [ByClass(), ByInstance(), ByProperty(), ByFrozenField()]


@pytest.mark.parametrize("policy", FORMS, ids=lambda policy: type(policy).__name__)
def test_the_flag_is_only_read_and_may_have_any_form(policy: Policy) -> None:
    assert isinstance(policy, Policy)
    assert Bounded(policy).needs_gradient_noise is True


def test_an_object_without_the_flag_is_no_policy() -> None:
    assert not isinstance(_Decides(), Policy)
