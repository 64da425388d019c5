"""One decision in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlbatch.errors import RlbatchError
from rlbatch.inspect.attribution import Attribution, attribute
from rlbatch.inspect.noise import noise_text
from rlbatch.inspect.one_thread import one_thread
from rlbatch.inspect.reading import RunLog
from rlbatch.inspect.replay import recorded_policy
from rlbatch.inspect.series import Point, context_value, cost_unit, step_cost_at, step_cost_curve
from rlbatch.inspect.text import compact, number, printable, signal
from rlbatch.inspect.turning import Situation, Turning, nearest, situations
from rlbatch.observation import EncoderState
from rlbatch.policy.learned import LearnedPolicy
from rlbatch.policy.tools import describe
from rlbatch.signals.record import Signals

_TRACE = 0.05  # log odds: a push below is not worth a word
_SAME_P = 1e-3  # by which a repeated probability may differ before the policy counts as another
_HAPPENED = {
    "rollback": "the chunk was rolled back",
    "fallback": "the policy was not trusted with what it saw",
    "off": "the controller switched off",
    "out_of_memory": "a pass ran out of memory",
}
_UNITS = {"s": "time", "samples": "samples", "J": "energy"}


@dataclass(frozen=True)
class Why:
    """What a learned policy's decision rested on.

    Attributes:
        attribution: Pushes by observation.
        turning: The nearest change of one signal that turns it; None where there is none.
        searched: It was looked for.
    """

    attribution: Attribution
    turning: Turning | None
    searched: bool = True


class Explainer:
    """Explains the decisions of one log.

    Attributes:
        note: Why pushes cannot be told, in a sentence; empty where they can.
    """

    def __init__(self, log: RunLog) -> None:
        """Find the policy that the log names."""
        self._log = log
        self._policy: LearnedPolicy | None = None
        self._ahead: Iterator[tuple[int, Signals, EncoderState]] = iter(())
        self._passed = math.inf  # index of the last line that `_ahead` has gone by
        self.note = ""
        if not any(record.probabilities for record in log.records):
            return  # a rule says in its reasons what it saw
        try:
            policy = recorded_policy(log.run)
        except RlbatchError as error:
            self.note = str(error)
            return
        if isinstance(policy, LearnedPolicy):
            self._policy = policy

    def _situation(self, index: int, change: float) -> Situation | None:
        """Return what a decision was made from: the encoder follows the log up to it."""
        if self._passed >= index:
            self._ahead, self._passed = situations(self._log), -1.0
        try:
            for place, signals, before in self._ahead:
                self._passed = place
                if place == index:
                    return Situation(signals, before, change)
        except RlbatchError as error:
            self.note = f"What would have turned a decision cannot be told: {error}"
        self._passed = math.inf
        return None

    def why(self, point: Point, *, turning: bool = True) -> Why | None:
        """Return what a decision rested on; None for rules, and where the policy is another now.

        Args:
            point: The decision.
            turning: Look for what would have turned it, too: some hundredths of a second, and less
                where decisions are asked for in their order.
        """
        with one_thread():
            return self._why(point, turning)

    def _why(self, point: Point, turning: bool) -> Why | None:
        record, policy = point.record, self._policy
        if policy is None or record.observation is None or record.probabilities is None:
            return None
        try:
            made = attribute(policy, record.observation)
        except RlbatchError as error:
            self.note = str(error)
            return None
        if not self._is_that_policy(point, policy, made):
            self.note = (
                "The policy of that name decides otherwise than the log says: it is another now."
            )
            self._policy = None
            return None
        change = record.requested_log2_change
        situation = self._situation(record.index, change) if turning else None
        if situation is None:
            return Why(made, None, searched=False)
        return Why(made, nearest(policy, situation))

    def _is_that_policy(self, point: Point, policy: LearnedPolicy, made: Attribution) -> bool:
        recorded = point.record.probabilities or ()
        if len(recorded) != len(policy.action_grid):
            return False
        odds = dict(zip(policy.action_grid, recorded, strict=True))
        ratio = math.exp(min(made.log_odds, 50.0))
        expected = odds[made.other] * ratio
        return odds[made.chosen] >= max(recorded) - _SAME_P and (
            abs(expected - odds[made.chosen]) <= _SAME_P + 0.01 * odds[made.chosen]
        )


def sentences(log: RunLog, found: Sequence[Point], place: int, why: Why | None) -> list[str]:
    """Return a decision in words, a sentence each.

    Args:
        log: The run.
        found: Every line of it.
        place: Which of them.
        why: What it rested on, where that is known.
    """
    point = found[place]
    told = [_what(point), _because(log, found, place)]
    if point.held_back:
        asked = number(round(point.asked))
        told.append(f"The policy asked for {asked}; {point.record.batch_size:,} was applied.")
    reasons = [printable(reason) for reason in point.record.reasons]
    if reasons:
        told.append(f"It says: {'; '.join(reasons)}.")
    if why is not None:
        told += [_pushes(why.attribution), _turned(log, point, why)]
    return [text for text in told if text]


def _what(point: Point) -> str:
    record = point.record
    before, after = record.batch_size_before, record.batch_size
    where = f"After step {record.step:,} ({record.samples_seen:,} samples)"
    if record.event == "end":
        return f"{where} the run ended at batch size {after:,}."
    if point.is_guard:
        what = _HAPPENED.get(record.event, record.event)
        sizes = f"went from {before:,} to {after:,}" if point.changed else f"stayed at {after:,}"
        return f"{where} {what}; the batch size {sizes}."
    verb = "raised" if after > before else "lowered"
    changed = f"{verb} from {before:,} to {after:,}" if point.changed else f"left at {before:,}"
    return f"{where} the batch size was {changed}.{_confidence(point)}"


def _confidence(point: Point) -> str:
    if math.isnan(point.probability):
        return ""
    if point.probability < max(point.record.probabilities or (0.0,)):
        return (
            f" The networks preferred another change and gave this one {point.probability:.2f}: "
            "the policy's own limits overruled them."
        )
    return f" Confidence {point.probability:.2f}."


def _because(log: RunLog, found: Sequence[Point], place: int) -> str:
    point = found[place]
    if not point.record.signals:
        return ""
    parts = [_noise(point), _cost(log, point), _loss(found, place)]
    text = ", ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "." if text else ""


def _noise(point: Point) -> str:
    if math.isnan(point.noise.value):
        return "the gradient noise is not measured yet"
    ratio = point.noise.value / point.record.batch_size_before
    shown = compact(float(f"{ratio:.2g}"))
    times = "about" if 0.8 < ratio < 1.25 else f"{shown} of" if ratio < 1 else f"{shown} times"
    least = "at least " if point.noise.is_bound else ""
    return f"the noise scale ({noise_text(point.noise)}) is {least}{times} the batch"


def _cost(log: RunLog, point: Point) -> str:
    if math.isnan(point.extra_cost) or not point.changed:
        return ""
    what = _UNITS.get(cost_unit(log.run), "cost")
    word = "more" if point.extra_cost >= 0 else "less"
    return f"a step of {point.record.batch_size:,} costs {abs(point.extra_cost):.0%} {word} {what}"


def _loss(found: Sequence[Point], place: int) -> str:
    """Compare the last three chunks' training losses with the three before."""
    losses = [signal(p.record, "train_loss") for p in found[max(place - 11, 0) : place + 1]]
    known = [loss for loss in losses if math.isfinite(loss)]
    if len(known) < 4:
        return ""
    half = min(3, len(known) // 2)
    recent, earlier = sum(known[-half:]) / half, sum(known[-2 * half : -half]) / half
    if recent < 0.98 * earlier:
        falls = all(
            b <= a for a, b in zip(known[-2 * half :], known[-2 * half + 1 :], strict=False)
        )
        return "the loss falls steadily" if falls else "the loss falls"
    return "the loss rises" if recent > 1.02 * earlier else "the loss hardly moves"


def _pushes(made: Attribution) -> str:
    groups = sorted(made.groups().items(), key=lambda item: -abs(item[1]))
    shown = [f"{name} {push:+.1f}" for name, push in groups if abs(push) >= _TRACE]
    odds = f"log odds {made.log_odds:+.1f} for {describe(made.chosen)} against "
    rest = f"{describe(made.other)}, {made.neutral_log_odds:+.1f} where nothing is known"
    return f"Pushes: {', '.join(shown)} ({odds}{rest})." if shown else ""


def _turned(log: RunLog, point: Point, why: Why) -> str:
    turning = why.turning
    if not why.searched:
        return ""
    if turning is None:
        return "No change of one signal, up to 256-fold, would have turned it."
    decided = describe(turning.change)
    what = "stayed" if decided == "stay" else f"asked for {decided}"
    return f"It would have {what} had {condition(log, point, turning)}."


def condition(log: RunLog, point: Point, turning: Turning) -> str:
    """Return a turning point in the signal's own unit: `the noise scale been below 300`."""
    factor = turning.factor
    side = "below" if factor < 1 else "above"
    values = {
        "noise scale": point.noise.value,
        "training loss": signal(point.record, "train_loss"),
        "validation loss": signal(point.record, "val_loss"),
        "plan": context_value(log.run, "planned_samples"),
    }
    value = values.get(turning.signal, math.nan)
    if math.isfinite(value):
        unit = " samples" if turning.signal == "plan" else ""
        return f"the {turning.signal} been {side} {number(value * factor, 3)}{unit}"
    size = _other_size(point)
    curve, before = step_cost_curve(point.record), float(point.record.batch_size_before)
    ratio = step_cost_at(curve, size) / step_cost_at(curve, before) if curve else math.nan
    if not ratio > 0:
        return f"the {turning.signal} been {compact(factor)} times as large"
    dearer = (factor < 1) != (ratio > 1)
    extra = ratio**factor - 1.0
    word = "more" if extra >= 0 else "less"
    than = ("more" if dearer else "less") + " than " if extra >= 0 else ""
    return f"a step of {round(size):,} cost {than}{abs(extra):.0%} {word}"


def _other_size(point: Point) -> float:
    """Return the size whose step cost is told: the new one, or double the present."""
    before = float(point.record.batch_size_before)
    return float(point.record.batch_size) if point.changed else 2.0 * before
