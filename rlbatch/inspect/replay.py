"""What a policy decides on the observations of a recorded run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlbatch.control.build import fallback_for
from rlbatch.control.engine import AppliedDecision, DecisionEngine, EngineConfig
from rlbatch.errors import EpisodeLogError, RlbatchError
from rlbatch.inspect.series import run_text
from rlbatch.log.decision_record import DecisionRecord
from rlbatch.log.episode_log import Episode
from rlbatch.policy.base import Policy
from rlbatch.policy.registry import policy_names, resolve_policy
from rlbatch.signals.record import COST_CURVE_SIZES, RunContext, Signals

_SAME = 1e-6  # of log2(batch size): rounding
_SIGNALS = tuple(field.name for field in fields(Signals) if field.name != "context")


@dataclass(frozen=True)
class Replayed:
    """A recorded decision and what a policy decides in its place.

    Attributes:
        record: As recorded.
        decision: Of the policy that is replayed, with the run's limits around it.
    """

    record: DecisionRecord
    decision: AppliedDecision

    @property
    def same_request(self) -> bool:
        """Both asked for the same change."""
        asked, recorded = self.decision.requested_log2_change, self.record.requested_log2_change
        return abs(asked - recorded) <= _SAME or (math.isnan(asked) and math.isnan(recorded))

    @property
    def same_size(self) -> bool:
        """The same batch size was, and would have been, applied."""
        return self.decision.batch_size == self.record.batch_size


def replay(
    episode: Episode, policy: Policy, wrappers: EngineConfig | None = None
) -> Iterator[Replayed]:
    """Yield what a policy decides after each recorded chunk. Its decisions have no effect.

    Args:
        episode: The log.
        policy: Decides.
        wrappers: Around it; None for those that the run had.

    Raises:
        EpisodeLogError: The log lacks what a decision needs.
    """
    context = run_context(episode.run)
    engine = DecisionEngine(
        policy, recorded_wrappers(episode.run, policy) if wrappers is None else wrappers
    )
    for record in episode.records:
        if was_decided(record):
            signals = signals_of(record, context)
            yield Replayed(record, engine.decide(signals, record.batch_size_before))


def was_decided(record: DecisionRecord) -> bool:
    """Whether a policy was asked: a roll-back may be a decision or stand before one."""
    return record.event in ("decision", "fallback", "rollback") and record.observation is not None


def run_context(run: Mapping[str, Any]) -> RunContext:
    """Return the run's constants.

    Raises:
        EpisodeLogError: The log does not hold them.
    """
    given: Any = run.get("context")
    try:
        known = {f.name: float(given[f.name]) for f in fields(RunContext) if f.name in given}
        return RunContext(**known)
    except (TypeError, ValueError, OverflowError) as error:
        raise EpisodeLogError(
            f"The log cannot be replayed: its run.json has no full context ({error})."
        ) from error


def signals_of(record: DecisionRecord, context: RunContext) -> Signals:
    """Return a recorded chunk's measurements.

    Raises:
        EpisodeLogError: Some are missing.
    """
    values: dict[str, Any] = {name: record.signals.get(name) for name in _SIGNALS}
    curve = np.asarray(values["step_cost_curve"] or (), dtype=np.float64)
    numbers = {name: value for name, value in values.items() if name != "step_cost_curve"}
    missing = sorted(name for name, value in numbers.items() if not isinstance(value, float))
    if missing or curve.shape != COST_CURVE_SIZES.shape:
        raise EpisodeLogError(
            f"Decision {record.index} cannot be replayed: it lacks "
            f"{', '.join(missing) or 'step_cost_curve'}. It was written by another version, or is "
            "damaged."
        )
    return Signals(context=context, step_cost_curve=curve, **numbers)


def recorded_policy(run: Mapping[str, Any]) -> Policy:
    """Return the policy that a log names.

    Raises:
        EpisodeLogError: It names none that is here.
    """
    name = run_text(run, "policy")
    if name is None:
        raise EpisodeLogError("The log does not say what decided. Name a policy with --policy.")
    known = name.partition(":")[0] in policy_names() or Path(name).is_file()
    try:
        if known:
            return resolve_policy(name)
        raise EpisodeLogError("there is none of that name here")
    except (RlbatchError, OSError) as error:
        raise EpisodeLogError(
            f"The log names the policy {name[:80]!r}, which cannot be used: {error} Name one with "
            "--policy."
        ) from error


def recorded_wrappers(run: Mapping[str, Any], policy: Policy) -> EngineConfig:
    """Return the wrappers that a run's settings put around a policy."""
    config: Any = run.get("config")
    if not isinstance(config, dict):
        return EngineConfig()
    given = cast("dict[str, Any]", config)
    try:
        fallback = given.get("fallback", "None")
        largest = given.get("max_log2_change", "None")
        return EngineConfig(
            max_log2_change=None if largest == "None" else float(largest),
            cooldown=int(given.get("cooldown", 0)),
            fallback=fallback_for(policy, None if fallback == "None" else str(fallback)),
            shadow=given.get("shadow") == "True",
        )
    except (TypeError, ValueError, OSError) as error:
        raise EpisodeLogError(f"The log's settings cannot be read: {error}") from error
