"""From a chunk's signals to the batch size of the next: encoder, policy, limits, rounding.

The same engine serves the controller in a user's loop, the benchmark and the replay of a log: it
holds no clock, file or trainer, and its state is plain data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlbatch.control.saved_state import require_like
from rlbatch.data.step_plan import resize
from rlbatch.errors import ConfigurationError
from rlbatch.log.decision_record import Event
from rlbatch.observation import EncoderState, encode, initial_state
from rlbatch.policy.base import Observation, Policy, noise_rate_of
from rlbatch.policy.bounds import Bounded
from rlbatch.policy.cooldown import Cooldown
from rlbatch.policy.fallback import Fallback
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.rate_limit import RateLimited
from rlbatch.policy.recurrent import RecurrentPolicy
from rlbatch.policy.shadow import Shadow
from rlbatch.policy.state import pack_state, unpack_state
from rlbatch.signals.record import Signals

STATE_VERSION = 3


@dataclass(frozen=True)
class EngineConfig:
    """The wrappers around the policy.

    Attributes:
        max_log2_change: Limit of one decision's change of log2(batch size); None for none.
        cooldown: Decisions to stay after a change.
        fallback: Decides where an observation is strange to a learned policy; None for nobody.
            `rlbatch.control.build.fallback_for` returns the one that is usual.
        shadow: Recommend only: nothing is ever applied.
    """

    max_log2_change: float | None = None
    cooldown: int = 0
    fallback: Policy | None = None
    shadow: bool = False

    def noise_rate(self, policy: Policy) -> float:
        """Return how densely noise is measured for a policy in these wrappers; 0: not at all."""
        return noise_rate_of(_wrapped(policy, policy, self))


@dataclass(frozen=True)
class AppliedDecision:
    """A decision and what became of it.

    Attributes:
        batch_size: To be in force from the next optimizer step on.
        batch_size_before: In force until now.
        requested_log2_change: What the policy itself asked for.
        applied_log2_change: What `batch_size` amounts to.
        observation: What the policy saw, float32 of shape (features,).
        probabilities: Of the policy's actions; None for rules.
        value: The policy's estimate of the return; None for rules.
        reasons: Why, and why the applied change differs from the requested one.
        fell_back: The policy was not trusted with this decision.
    """

    batch_size: int
    batch_size_before: int
    requested_log2_change: float
    applied_log2_change: float
    observation: Observation
    probabilities: tuple[float, ...] | None
    value: float | None
    reasons: tuple[str, ...]
    fell_back: bool = False

    @property
    def event(self) -> Event:
        """What the log calls it."""
        return "fallback" if self.fell_back else "decision"

    def held(self) -> AppliedDecision:
        """Return the decision to stay, where the guard has to see a chunk at the size in force."""
        return replace(
            self,
            batch_size=self.batch_size_before,
            applied_log2_change=0.0,
            reasons=(*self.reasons, "stays for a chunk after a roll-back"),
        )


class _Asked:
    """A policy that remembers what it was asked last, inside of all wrappers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.needs_gradient_noise = policy.needs_gradient_noise
        self.noise_rate = noise_rate_of(policy)
        self.log2_change = 0.0

    def initial_state(self, shape: tuple[int, ...] = ()) -> Any:
        return self.policy.initial_state(shape)

    def decide(self, observation: Observation, signals: Signals, state: Any) -> tuple[Any, Any]:
        decision, state = self.policy.decide(observation, signals, state)
        self.log2_change = float(decision.log2_change)
        return decision, state


class DecisionEngine:
    """Decides for one run.

    Attributes:
        policy: What decides, with its wrappers.
        noise_rate: How densely the gradient noise is to be measured; 0 for not at all.
    """

    def __init__(self, policy: Policy, config: EngineConfig | None = None) -> None:
        """Start before the first decision.

        Args:
            policy: Anything of the `Policy` protocol.
            config: The wrappers around it.
        """
        config = EngineConfig() if config is None else config
        self._asked = _Asked(policy)
        self.policy = _wrapped(self._asked, policy, config)
        self.noise_rate = noise_rate_of(self.policy)
        self._policy_state = self.policy.initial_state()
        self._encoder_state = initial_state()

    def decide(self, signals: Signals, batch_size: int | None = None) -> AppliedDecision:
        """Return the decision after a chunk.

        Args:
            signals: Of the chunk.
            batch_size: In force now, from which the change counts. It differs from the chunk's
                after a roll-back, and is the chunk's where it is None.
        """
        before = round(float(signals.batch_size)) if batch_size is None else batch_size
        observation, self._encoder_state = encode(signals, self._encoder_state)
        reasons: tuple[str, ...] = ()
        if before != round(float(signals.batch_size)):
            # Rules and limits ask for a change from the size in the signals.
            signals = replace(signals, batch_size=float(before))
            reasons = (f"counted from {before}, to which the chunk was rolled back",)
        decision, self._policy_state = self.policy.decide(observation, signals, self._policy_state)
        low, high = signals.context.min_batch_size, signals.context.max_batch_size
        size = int(resize(before, float(decision.log2_change), low, high))
        applied = math.log2(size / before)
        return AppliedDecision(
            batch_size=size,
            batch_size_before=before,
            requested_log2_change=self._asked.log2_change,
            applied_log2_change=applied,
            observation=observation,
            probabilities=_numbers(decision.probabilities),
            value=None if decision.value is None else float(decision.value),
            reasons=(*decision.reasons, *reasons),
            fell_back=bool(decision.fell_back),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the policy's state as JSON-compatible values."""
        return {
            "version": STATE_VERSION,
            "encoder": {
                name: pack_state(np.asarray(value))
                for name, value in self._encoder_state._asdict().items()
            },
            "policy": pack_state(self._policy_state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: It is of another version, or of another kind of policy.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigurationError(
                f"A decision state of version {STATE_VERSION} was expected, got "
                f"{state.get('version')!r}. Resume with the rlbatch that wrote it."
            )
        require_like(state, {"version": 0, "encoder": None, "policy": None}, "the decisions' state")
        names = dict.fromkeys(EncoderState._fields)
        require_like(state["encoder"], names, "the state of the observations")
        encoder = {name: unpack_state(state["encoder"][name]) for name in names}
        policy = unpack_state(state["policy"])
        if not _alike(tuple(encoder.values()), self._encoder_state):
            raise ConfigurationError(
                "The decision state's averages are damaged: numbers of another shape. Resume from "
                "another checkpoint, or start anew."
            )
        if not _alike(policy, self._policy_state):
            raise ConfigurationError(
                "The decision state was written by another policy or with other wrappers. "
                "Resume with the same ones, or start anew."
            )
        self._encoder_state, self._policy_state = EncoderState(**encoder), policy


def _wrapped(asked: Policy, policy: Policy, config: EngineConfig) -> Policy:
    inner = asked
    if config.fallback is not None:
        if isinstance(policy, LearnedPolicy | RecurrentPolicy):
            card = policy.card
            low, high = card.observation_low, card.observation_high
            inner = Fallback(inner, config.fallback, low=low, high=high)
        else:
            inner = Fallback(inner, config.fallback)
    if config.max_log2_change is not None:
        inner = RateLimited(inner, config.max_log2_change)
    inner = Bounded(inner)
    if config.cooldown:
        inner = Cooldown(inner, config.cooldown)
    return Shadow(inner) if config.shadow else inner


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(np.ravel(values).tolist())


def _alike(left: Any, right: Any) -> bool:
    """True when two policy states have the same shape, tuple by tuple, array by array.

    None stands for what a policy does not know yet, and is like anything.
    """
    if left is None or right is None:
        return True
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_alike, left, right))
    if isinstance(left, np.ndarray | np.generic) or isinstance(right, np.ndarray | np.generic):
        one, other = np.asarray(left), np.asarray(right)
        return one.shape == other.shape and _is_numeric(one) and _is_numeric(other)
    return type(left) is type(right) or (_is_numeric(left) and _is_numeric(right))


def _is_numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"
