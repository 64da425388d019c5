"""The decision after a chunk of a user's run, with what is to be said of that chunk."""

from __future__ import annotations

import math
from dataclasses import replace

from rlbatch.control.engine import AppliedDecision, DecisionEngine
from rlbatch.control.loop_progress import LoopProgress
from rlbatch.control.rollback import Rollback
from rlbatch.data.step_plan import round_batch_size
from rlbatch.signals.record import RunContext, Signals

_FEWEST_ASKED = 3  # steps that were to be measured, before it is said that none was
_TRIED = "the loss rose: the weights after step {} are tried for a step"


class ChunkDecider:
    """Asks the engine, and adds what ranks, the guard and missing measurements make of it."""

    def __init__(
        self, engine: DecisionEngine, guard: Rollback, progress: LoopProgress, world_size: int
    ) -> None:
        """Take the parts of a run that have a say in it.

        Args:
            engine: Decides.
            guard: Undoes chunks.
            progress: How far the run is.
            world_size: Ranks, each of which gets the same share of a batch.
        """
        self._engine, self._guard, self._progress = engine, guard, progress
        self._world_size = world_size

    def decide(self, signals: Signals, in_force: int, *, rolled_back: bool) -> AppliedDecision:
        """Return the decision.

        Args:
            signals: Of the chunk.
            in_force: Batch size from which a change counts.
            rolled_back: The chunk was undone, if only on trial.
        """
        decision = _shareable(
            self._engine.decide(signals, in_force), signals.context, self._world_size
        )
        at, guard = self._progress, self._guard
        if not at.noise_seen and (said := _unmeasured(at.asked)):
            at.noise_seen = True  # or said, which is as good
            decision = replace(decision, reasons=(*decision.reasons, said))
        if not rolled_back:
            return decision
        on_trial = guard.trial is not None
        said = _TRIED.format(guard.copied_at) if on_trial else guard.undone(at.chunk_began)
        decision = replace(decision, reasons=(*decision.reasons, said))
        return decision.held() if guard.suspects else decision


def _unmeasured(asked: int) -> str:
    """Return what to say where none of the steps to be measured showed any noise; mostly nothing.

    Args:
        asked: How many there were.
    """
    if asked < _FEWEST_ASKED:
        return ""
    return (
        f"no gradient noise is known: none of the first {asked} steps to be measured showed any "
        "(layers of other kinds, compiled models, undivided steps of sharded models)"
    )


def _shareable(decision: AppliedDecision, context: RunContext, world_size: int) -> AppliedDecision:
    """Return the decision at a size of which every rank gets the same share."""
    limits = int(context.min_batch_size), int(context.max_batch_size)
    if decision.batch_size % world_size == 0:
        return decision
    size = int(round_batch_size(decision.batch_size, *limits, world_size))
    return replace(
        decision,
        batch_size=size,
        applied_log2_change=math.log2(size / decision.batch_size_before),
        reasons=(*decision.reasons, f"a multiple of {world_size} ranks"),
    )
