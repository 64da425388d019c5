"""A policy trained with PPO, run with NumPy alone.

A decision takes tens of microseconds and needs neither torch nor stable-baselines3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlbatch.errors import ConfigurationError
from rlbatch.observation import OBSERVATION_SIZE
from rlbatch.policy import tools
from rlbatch.policy.base import Decision, Observation
from rlbatch.policy.card import PolicyCard, Trained
from rlbatch.policy.network import Float32, Network, Stack, softmax
from rlbatch.policy.size_limits import goodput_floor, near_base, noise_ceiling, planned_steps
from rlbatch.signals.elementwise import isfinite, number
from rlbatch.signals.record import Array, Signals

Limit = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class LearnedPolicy(Trained):
    """Softmax over a grid of batch-size changes, from one network or the average of several.

    Attributes:
        members: The networks; their probabilities and their values are averaged.
        action_grid: Change of log2(batch size) of each action, ascending, 0 among them.
        goodput_slack: How far below the most productive size, in log2, it may choose a batch size
            where the gradient noise is known; None: as far as it likes. Small tasks teach that
            small batches do no harm; where samples are dear and noisy, they do.
        noise_ceiling: How far above the gradient noise scale, in log2, it may choose a batch size
            where that is known and the run has a schedule or a known length; None: as far as it
            likes. The task's own size is always allowed. Far beyond the noise scale a larger batch
            does not shorten a run (McCandlish et al. 2018), but a device that is not full makes it
            look free.
        keeps_steps: Where the learning rate has a schedule (the context's planned samples are
            known), it chooses no size with which the rest of the schedule is over before as many
            steps are done as were planned; a quarter of them, where the learning rate follows the
            batch size and makes up for the others. A few large batches at the start would use up
            what makes the run arrive.
        near_base: Where the learning rate has a schedule, it stays near the user's size at first
            and grows with the schedule, see `rlbatch.policy.size_limits.near_base`. Early on a
            large batch harms most, and what is left of a schedule does not make up for it (Merrill
            et al. 2025, "Critical batch size revisited").
        values: Estimate the return, too, which takes as long as deciding does; False leaves it out
            where nobody looks.
        masked: Leave out actions that would leave the context's [min, max] batch size. Choose it
            as in training: a policy that learnt while its actions were clipped is run with clipped
            actions (`Bounded`), not with a mask.
        sample: Draw the action instead of taking the most probable one.
        seed: Start of the random stream of `sample`.
        card: How the policy was made.
    """

    members: tuple[Network, ...]
    action_grid: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    goodput_slack: float | None = None
    noise_ceiling: float | None = None
    keeps_steps: bool = False
    near_base: bool = False
    values: bool = True
    masked: bool = False
    sample: bool = False
    seed: int = 0
    card: PolicyCard = field(default_factory=PolicyCard)

    needs_gradient_noise = True

    def __post_init__(self) -> None:
        grid = tools.checked_grid("LearnedPolicy", self.action_grid)
        object.__setattr__(self, "action_grid", grid)
        object.__setattr__(self, "members", tuple(self.members))
        for name in ("goodput_slack", "noise_ceiling"):
            value = getattr(self, name)
            if value is not None and not isfinite(value):
                raise ConfigurationError(
                    f"LearnedPolicy.{name} must be finite or None; got {value}."
                )
        if self.seed < 0:
            raise ConfigurationError(f"LearnedPolicy.seed must not be negative; got {self.seed}.")
        if not self.members:
            raise ConfigurationError("LearnedPolicy.members needs at least one network; got none.")
        for member in self.members:
            _check_ends(member.sizes("policy"), len(grid), "policy")
            _check_ends(member.sizes("value"), 1, "value")

    def initial_state(
        self, shape: tuple[int, ...] = ()
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return (seed, decisions so far), each of the given shape."""
        return tools.seeds(self.seed, shape), np.zeros(shape, dtype=np.int64)

    def decide(
        self, observation: Observation, signals: Signals, state: Any
    ) -> tuple[Decision, Any]:
        """Return the most probable (or a drawn) change, with all probabilities and the value.

        An observation that is not finite gets "stay" with probability one.

        Args:
            observation: Shape (..., OBSERVATION_SIZE), float32.
            signals: Read for the bounds when `masked`.
            state: From `initial_state` or the previous call.
        """
        given = tools.checked_observation("LearnedPolicy", observation)
        seed, counter = state
        probabilities, value = self._forward(given, signals)
        if self.sample:
            index = _draw(probabilities, tools.uniform(seed, counter))
        else:
            index = probabilities.argmax(axis=-1)
        chosen = tools.numeric(self._grid[index])
        single = isinstance(chosen, float)
        reasons: list[str] = []
        if single:
            reasons.append(f"learned: {tools.describe(chosen)} (p={probabilities[index]:.2f})")
        change = number(chosen)
        for name, limit in self._limits(given, signals):
            before, change = change, limit(change)
            if single and abs(float(change) - float(before)) > tools.SAME_SIZE:  # or rounding
                reasons.append(f"{name}: {tools.describe(float(change))}")
        estimate = None if value is None else tools.numeric(value)
        made = Decision(tools.numeric(change), probabilities, estimate, tuple(reasons))
        return made, (seed, np.asarray(counter) + 1)

    def _limits(self, observation: Float32, signals: Signals) -> Iterator[tuple[str, Limit]]:
        """Yield the limits in force, in their order, by what a log calls them."""
        slack, ceiling = self.goodput_slack, self.noise_ceiling
        if slack is not None:
            yield "goodput floor", lambda change: goodput_floor(change, observation, slack)
        if ceiling is not None:
            yield (
                "noise ceiling",
                lambda change: noise_ceiling(change, observation, signals, ceiling),
            )
        if self.keeps_steps:
            yield "planned steps", lambda change: planned_steps(change, signals)
        if self.near_base:
            yield (
                "share of the schedule",
                lambda change: near_base(change, observation, signals),
            )

    def _legal(self, finite: NDArray[np.bool_], signals: Signals) -> NDArray[np.bool_]:
        """Return which actions may be taken, shape (..., actions); "stay" always may.

        Args:
            finite: Which features of the observation are.
            signals: Of the chunk.
        """
        grid = self._grid
        legal = finite.all(axis=-1, keepdims=True)
        if self.masked:
            size = _log2(signals.batch_size) + grid
            low = _log2(signals.context.min_batch_size) - tools.SAME_SIZE
            high = _log2(signals.context.max_batch_size) + tools.SAME_SIZE
            legal = legal & (size >= low) & (size <= high)
        return legal | (grid == 0.0)

    def _forward(self, observation: Float32, signals: Signals) -> tuple[Float32, Float32 | None]:
        finite = np.isfinite(observation)
        stack = self._stack if observation.ndim == 1 else None
        if stack is not None and not self.masked and finite.all():  # nothing is left out
            return self._together(stack, np.ascontiguousarray(observation), None)
        inputs = np.where(finite, observation, np.float32(0.0))
        legal = self._legal(finite, signals)
        if stack is not None:
            return self._together(stack, inputs, legal)
        probabilities = [
            softmax(np.where(legal, member.forward("policy", inputs), -np.inf))
            for member in self.members
        ]
        values = [member.forward("value", inputs)[..., 0] for member in self.members if self.values]
        return _mean(np.stack(probabilities)), _mean(np.stack(values)) if values else None

    def _together(
        self, stack: Stack, inputs: Float32, legal: NDArray[np.bool_] | None
    ) -> tuple[Float32, Float32 | None]:
        """Return what all networks say of a single run; where `legal` is None, all actions are."""
        logits = stack.forward("policy", inputs)
        if legal is not None:
            logits = np.where(legal, logits, -np.inf)
        value = _mean(stack.forward("value", inputs)[:, 0]) if self.values else None
        return _mean(softmax(logits)), value

    @cached_property
    def _grid(self) -> Array:
        return np.asarray(self.action_grid)

    @cached_property
    def _stack(self) -> Stack | None:
        return Stack(self.members) if Stack.can_stack(self.members) else None


def _mean(parts: Float32) -> Float32:
    return np.add.reduce(parts, axis=0) / np.float32(len(parts))


def _draw(probabilities: Float32, uniform: Array) -> NDArray[np.intp]:
    """Return where the cumulated probability passes `uniform`; never an entry of probability 0."""
    cumulated = np.cumsum(probabilities, axis=-1, dtype=np.float64)
    total = cumulated[..., -1]
    point = np.minimum(uniform * total, np.nextafter(total, 0.0))
    return np.asarray((cumulated <= point[..., None]).sum(axis=-1))


def _log2(value: ArrayLike) -> Array:
    """Return log2 with a last axis of length one, to meet the axis of the actions."""
    return np.log2(np.asarray(value, dtype=np.float64))[..., None]


def join(policies: Sequence[LearnedPolicy]) -> LearnedPolicy:
    """Return the first policy with the networks of all: it decides by their mean probabilities.

    Raises:
        ConfigurationError: Their actions differ.
    """
    first = policies[0]
    for other in policies[1:]:
        for name in ("action_grid", "masked"):
            if getattr(other, name) != getattr(first, name):
                raise ConfigurationError(
                    f"Policies to join must have the same {name}, got {getattr(first, name)} and "
                    f"{getattr(other, name)}."
                )
    return replace(first, members=tuple(member for policy in policies for member in policy.members))


def _check_ends(sizes: tuple[int, ...], outputs: int, net: str) -> None:
    if (sizes[0], sizes[-1]) != (OBSERVATION_SIZE, outputs):
        raise ConfigurationError(
            f"The {net} net must take {OBSERVATION_SIZE} features and give {outputs} numbers; its "
            f"layer sizes are {sizes}."
        )
