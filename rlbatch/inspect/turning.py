"""The nearest change of one signal that would have turned a learned policy's decision.

One signal is multiplied by a factor, everything else stays; the encoder and the policy are run
again. The factor nearest to one with which they decide otherwise is searched for on a grid and then
narrowed down by bisection, so that what is told was run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlbatch.inspect.replay import run_context, signals_of, was_decided
from rlbatch.log.episode_log import Episode
from rlbatch.observation import EncoderState, encode, initial_state, step_cost_at
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.tools import SAME_SIZE
from rlbatch.signals.record import Signals

Values = NDArray[np.float64]

_SPACING = 0.25  # of the grid, in doublings
# Factors nearest to one first, up and down alternately, up to 256-fold.
_GRID: Values = np.exp2(np.array([s * g * _SPACING for g in range(1, 33) for s in (1.0, -1.0)]))
_BISECTIONS = 7


@dataclass(frozen=True)
class Situation:
    """What a decision was made from.

    Attributes:
        signals: Of the chunk.
        before: State of the encoder before it.
        change: What the policy decided: change of log2(batch size).
    """

    signals: Signals
    before: EncoderState
    change: float


@dataclass(frozen=True)
class Turning:
    """A change of one signal with which the policy decides otherwise.

    Attributes:
        signal: `noise scale`, `step cost`, `training loss`, `validation loss` or `plan`.
        factor: By which it would have had to be multiplied.
        change: What the policy decides then: change of log2(batch size).
    """

    signal: str
    factor: float
    change: float


_Changed = tuple[Signals, EncoderState]


def situations(episode: Episode) -> Iterator[tuple[int, Signals, EncoderState]]:
    """Yield (index of the line, signals, encoder state before) of every decision of a log.

    Raises:
        EpisodeLogError: The log lacks what an observation is made of.
    """
    context, state = run_context(episode.run), initial_state()
    for record in episode.records:
        if was_decided(record):
            signals = signals_of(record, context)
            yield record.index, signals, state
            state = encode(signals, state)[1]


def nearest(policy: LearnedPolicy, situation: Situation) -> Turning | None:
    """Return the change of one signal nearest to none that turns the decision.

    None where no signal does, changed up to 256-fold, or where the policy draws its actions.
    """
    if policy.sample:
        return None
    tried = {name: _first_turned(policy, situation, change) for name, change in _SIGNALS.items()}
    found = {name: factor for name, factor in tried.items() if factor is not None}
    if not found:
        return None
    name = min(found, key=lambda name: abs(math.log(found[name])))
    return _narrowed(policy, situation, name, found[name])


def _first_turned(
    policy: LearnedPolicy, situation: Situation, change: Callable[..., _Changed]
) -> float | None:
    """Return the factor of the grid, nearest to one, that turns the decision."""
    decided = _decisions(policy, situation, change, _GRID)
    turned = np.flatnonzero(np.abs(decided - situation.change) > SAME_SIZE)
    return float(_GRID[turned[0]]) if turned.size else None


def _narrowed(policy: LearnedPolicy, situation: Situation, name: str, far: float) -> Turning:
    """Return the turning point between a factor that turns the decision and the one before it."""
    near = float(np.exp2(math.log2(far) - math.copysign(_SPACING, math.log2(far))))
    change = _SIGNALS[name]
    result = float(_decisions(policy, situation, change, np.array([far]))[0])
    for _ in range(_BISECTIONS):
        middle = math.sqrt(near * far)
        there = float(_decisions(policy, situation, change, np.array([middle]))[0])
        if abs(there - situation.change) > SAME_SIZE:
            far, result = middle, there
        else:
            near = middle
    return Turning(name, far, result)


def _decisions(
    policy: LearnedPolicy,
    situation: Situation,
    change: Callable[..., _Changed],
    factors: Sequence[float] | Values,
) -> Values:
    """Return what the policy decides with a signal multiplied by each of the factors."""
    count = len(factors)
    signals, before = change(
        _repeated(situation.signals, count),
        EncoderState(*(_rows(value, count) for value in situation.before)),
        np.asarray(factors, dtype=np.float64),
    )
    observation, _ = encode(signals, before)
    decision, _ = policy.decide(observation, signals, policy.initial_state((count,)))
    return np.asarray(decision.log2_change, dtype=np.float64)


def _repeated(signals: Signals, count: int) -> Signals:
    values: dict[str, Any] = {
        field.name: _rows(getattr(signals, field.name), count)
        for field in fields(Signals)
        if field.name != "context"
    }
    return Signals(context=signals.context, **values)


def _rows(value: Any, count: int) -> Values:
    array = np.asarray(value, dtype=np.float64)
    return np.broadcast_to(array, (count, *array.shape)).copy()


def _noise(signals: Signals, before: EncoderState, factor: Values) -> _Changed:
    """Let every measurement of tr(Sigma) so far, with its error, be a multiple."""
    changed = replace(
        signals,
        noise_trace=signals.noise_trace * factor,
        noise_trace_se=signals.noise_trace_se * factor,
    )
    state = before._replace(
        noise_trace=before.noise_trace * factor, noise_fast=before.noise_fast + np.log2(factor)
    )
    return changed, state


def _step_cost(signals: Signals, before: EncoderState, factor: Values) -> _Changed:
    """Let the cost of a step rise more or less steeply around the present size, in log-log."""
    curve = signals.step_cost_curve
    here = step_cost_at(curve, np.log2(signals.batch_size))[:, None]
    return replace(signals, step_cost_curve=here + factor[:, None] * (curve - here)), before


def _train_loss(signals: Signals, before: EncoderState, factor: Values) -> _Changed:
    return replace(signals, train_loss=signals.train_loss * factor), before


def _val_loss(signals: Signals, before: EncoderState, factor: Values) -> _Changed:
    return replace(signals, val_loss=signals.val_loss * factor), before


def _plan(signals: Signals, before: EncoderState, factor: Values) -> _Changed:
    planned = np.asarray(signals.context.planned_samples) * factor
    return replace(signals, context=replace(signals.context, planned_samples=planned)), before


_SIGNALS: dict[str, Callable[..., _Changed]] = {
    "noise scale": _noise,
    "step cost": _step_cost,
    "training loss": _train_loss,
    "validation loss": _val_loss,
    "plan": _plan,
}
