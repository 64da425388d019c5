"""Limits within which a learned policy's batch sizes stay, where it was given them.

Each takes a change of log2(batch size) and returns it, raised or lowered; for one run or many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlbatch.observation import OBSERVATION_NAMES, step_cost_at
from rlbatch.observation.state import TINY
from rlbatch.policy.network import Float32
from rlbatch.signals.elementwise import isfinite, isnan, maximum, minimum, number, where
from rlbatch.signals.record import Array, RunContext, Signals

_GOODPUT, _NOISE_KNOWN, _NOISE, _REMAINING, _SINCE = map(
    OBSERVATION_NAMES.index,
    ("goodput_step", "noise_known", "noise_vs_size", "val_remaining", "since_change"),
)
_GOODPUT_SCALE, _NOISE_SCALE, _REMAINING_SCALE, _SINCE_SCALE = 6.0, 10.0, 8.0, 8.0  # of these
_LARGEST_RAISE = 1.0  # of log2(batch size), by which the floor lifts at a time
_KEPT_SHARE = 0.25  # of the planned steps, where the learning rate follows the batch size
_GROWTH = ((0.1, 0.0), (0.25, 1.0))
_FORESEEN, _WELL_FORESEEN = _GROWTH[-1][0], 0.5  # from here on `arrival` says enough
_MOST_GROWN = 3.0  # doublings, where it says the most
_LATEST = 0.65  # share of the plan by which the target has to be expected
_EARLIER = 0.3  # share, for each that is missing to `_WELL_FORESEEN`
_PER_DOUBLING = 1.5  # times as many samples as are left at half the size, at most
_HELD = 0.05  # share of the plan for which a size is kept from `_FORESEEN` on, or 8 chunks
_UNPLANNED = 1.0  # doublings, where a schedule moves whose length nobody said
_FIRST_LEAST = -1.0  # doublings, before the first share of `_GROWTH`
_TO_SHRINK = 0.25  # most of a sample's cost that a doubling saves, in log2: a sixth
_TO_RISE = 0.55  # least that it saves: a third
_GUESSED_SAVING = 0.585  # what it saves where twice the user's size is guessed to be the knee
_COST_KNOWN = 0.4  # of `Signals.step_cost_known`: more than one size was measured
_STILL = 1e-9  # of a schedule's factor
_MOST_FOLDS = 5.0  # of cost that is left


def goodput_floor(change: Array, observation: Float32, slack: float) -> Array:
    """Raise where it would end further than the slack below the most productive size.

    That size is the argmax of Pollux's goodput (Qiao et al. 2021, section 3), as observed. A policy
    that did not ask to rise is lifted by one doubling at a time.
    """
    lowest = _GOODPUT_SCALE * _feature(observation, _GOODPUT) - slack
    lift = (_feature(observation, _NOISE_KNOWN) > 0.0) & (change < lowest)
    return where(lift, maximum(change, minimum(lowest, _LARGEST_RAISE)), change)


def noise_ceiling(change: Array, observation: Float32, signals: Signals, ceiling: float) -> Array:
    """Lower by whole doublings to so many above the noise scale, or to the user's size.

    Only in runs of a known length or with a schedule. Elsewhere what a large batch loses in samples
    it may gain in time, and it can be taken back; a schedule that has decayed cannot.
    """
    bound = isfinite(number(signals.context.planned_samples)) | _moves(signals)
    noise = _NOISE_SCALE * _feature(observation, _NOISE)
    most = maximum(np.rint(noise + ceiling), _to_base(signals))
    known = _feature(observation, _NOISE_KNOWN) > 0.0
    return where(known & bound, minimum(change, most), change)


def planned_steps(change: Array, signals: Signals) -> Array:
    """Lower to where what is left of the plan lasts for enough of its steps."""
    context = signals.context
    planned = number(context.planned_samples)
    samples = planned - signals.total_samples
    share = where(number(context.coupling_exponent) == 0.0, 1.0, _KEPT_SHARE)
    steps = share * planned / context.base_batch_size - signals.total_steps
    bound = (samples > 0) & (steps > 0) & _has_target(context)
    most = np.log2(where(bound, samples, 1.0) / where(bound, steps, 1.0))
    return where(bound, minimum(change, most - np.log2(signals.batch_size)), change)


def arrival(observation: Float32, signals: Signals) -> Array:
    """Return at which share of the plan the target is expected.

    The log of the validation loss is taken to go on falling with the log of the cost as it did in
    the last validations.
    """
    folds = np.exp2(_REMAINING_SCALE * _feature(observation, _REMAINING))
    cost = number(signals.total_cost) * np.expm1(minimum(folds, _MOST_FOLDS))
    # At least 1: all steps of a chunk may have been left out.
    chunk = maximum(number(signals.steps), 1.0) * signals.batch_size
    a_sample = maximum(number(signals.chunk_cost), TINY) / chunk
    samples = number(signals.total_samples) + cost / a_sample
    return samples / number(signals.context.planned_samples)


def near_base(change: Array, observation: Float32, signals: Signals) -> Array:
    """Keep near the user's size as long as the schedule asks for it.

    By `_GROWTH` it may be at most so many doublings above before such a share of the plan. Before
    the first share it is the user's, or half of it where that costs no time; after the last one as
    far above as the plan sustains, and a size is kept for a while. Where a schedule moves whose
    length nobody said, it is never far above; on a device that is full, not at all.
    """
    context = signals.context
    done = number(signals.total_samples) / number(context.planned_samples)
    moves = _moves(signals)
    aimed = _has_target(context) & (~isnan(done) | moves)
    if not np.any(aimed):
        return change
    shift = _to_base(signals)
    most = where(isnan(done) & moves, _UNPLANNED, np.inf)
    sustained = _sustained(observation, signals, done) - shift
    most = where(done < 1.0, minimum(maximum(sustained, 0.0), _MOST_GROWN), most)
    for share, doublings in reversed(_GROWTH):
        most = where(done < share, doublings, most)
    most = where(_saves_less(signals, _TO_RISE, above=0), minimum(most, 0.0), most)
    first = where(_saves_less(signals, _TO_SHRINK, above=-1), _FIRST_LEAST, 0.0)
    least = where(aimed & (done < _GROWTH[0][0]), first, -np.inf)
    limited = maximum(minimum(change, where(aimed, most, np.inf) + shift), least + shift)
    return where(aimed & _is_held(observation, signals, done), 0.0, limited)


def _sustained(observation: Float32, signals: Signals, done: Array) -> Array:
    """Return by how many doublings the size may change so that the target still comes in time.

    Each is taken to need `_PER_DOUBLING` times the samples that are left to the target. They are
    whole ones: a size stays until the plan holds for one more, or not for this one.
    """
    expected = maximum(arrival(observation, signals) - done, TINY)
    latest = _LATEST - _EARLIER * maximum(_WELL_FORESEEN - done, 0.0)
    times = maximum(latest - done, TINY) / expected
    return np.floor(np.log(times) / np.log(_PER_DOUBLING))


def _is_held(observation: Float32, signals: Signals, done: Array) -> NDArray[np.bool_]:
    """Return whether the last change is too short a time ago for another."""
    chunks = _SINCE_SCALE * _feature(observation, _SINCE)
    samples = chunks * number(signals.steps) * signals.batch_size
    recent = (chunks < _SINCE_SCALE) & (samples < _HELD * number(signals.context.planned_samples))
    return (done >= _FORESEEN) & (done < 1.0) & recent


def _feature(observation: Float32, place: int) -> Array:
    """Return a feature of each run, of a single one as a number."""
    return number(float(observation[place]) if observation.ndim == 1 else observation[..., place])


def _moves(signals: Signals) -> NDArray[np.bool_]:
    return abs(number(signals.schedule_factor) - 1.0) > _STILL


def _saves_less(signals: Signals, saving: float, *, above: int) -> NDArray[np.bool_]:
    """Return whether a doubling is known to save less of a sample's cost.

    As long as the costs are known from two sizes alone, `rlbatch.signals.step_time.fit` mixes them
    with a guess, and so is what they are compared with.

    Args:
        signals: With the costs.
        saving: In log2.
        above: Doublings from the user's size to the one that is doubled.
    """
    curve, base = signals.step_cost_curve, np.log2(number(signals.context.base_batch_size))
    if np.ndim(base) != np.ndim(curve) - 1:  # the one of many runs, the other common to them
        shape = np.broadcast_shapes(np.shape(base), np.shape(curve)[:-1])
        base = np.broadcast_to(base, shape)
        curve = np.broadcast_to(curve, (*shape, np.shape(curve)[-1]))
    one, two = (step_cost_at(curve, base + shift) - shift for shift in (above, above + 1))
    known = number(signals.step_cost_known)
    least = known * saving + (1.0 - known) * _GUESSED_SAVING
    return (known >= _COST_KNOWN) & (one - two < least)


def _to_base(signals: Signals) -> Array:
    """Return the change that leads to the user's size."""
    return np.log2(number(signals.context.base_batch_size) / signals.batch_size)


def _has_target(context: RunContext) -> NDArray[np.bool_]:
    return isfinite(number(context.target_loss))
