"""Keeps a copy of the weights before each chunk and puts it back when the chunk did damage."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlbatch.control.guard import (
    ChunkLoss,
    GuardConfig,
    GuardState,
    judge,
    kept_level,
    rises_the_same,
)
from rlbatch.control.ranks import Ranks
from rlbatch.control.training_parts import WeightCopy
from rlbatch.signals.monitor import ChunkMeasurement

_CHEAP = 0.02  # share of a chunk's time that a copy before every chunk may take


@dataclass(frozen=True)
class Trial:
    """A chunk whose loss rose, while a step with the weights from before is to tell why.

    Attributes:
        chunk: The chunk's losses.
        before: What it was judged by.
        size_before: Batch size of the chunk before it.
        began: Optimizer steps made at its start.
        step: Optimizer steps made at its end.
    """

    chunk: ChunkLoss
    before: GuardState
    size_before: int
    began: int
    step: int


class Rollback:
    """The guard of a user's run.

    A chunk without a finite loss is undone at once. Where the loss has risen, the weights from
    before the chunk are put back for a step, on trial. Is its loss as high, so is the loss of the
    task, as where a term is phased in, and the chunk's own weights are put back.

    It answers for what the controller did: before the batch size was first changed there is no
    copy, and nothing is undone.

    Attributes:
        count: Chunks undone so far.
        trial: The chunk on trial; None mostly.
        copied_at: Optimizer steps after which the copy was made: those before the chunk, or before
            an earlier one where copies are dear.
        copies_often: 1 where the next chunk begins with a copy, as one is cheap; by one clock, as
            ranks whose copies are of different chunks would go on from different ones.
    """

    def __init__(
        self,
        weights: WeightCopy,
        config: GuardConfig | None,
        ranks: Ranks | None = None,
    ) -> None:
        """Watch a training; without a configuration nothing is ever done.

        Args:
            weights: Copies what a chunk changes.
            config: Limits; None for none.
            ranks: The processes that train together; None for this one alone.
        """
        self._config, self._ranks = config, ranks or Ranks()
        self._snapshot = weights
        self._state = self._state_then = GuardState()  # now, and when the copy was made
        self._seconds = self._chunk_seconds = 0.0
        self._began = time.perf_counter()
        self.count = self.copied_at = 0
        self.copies_often = 0
        self.trial: Trial | None = None

    @property
    def diverged(self) -> bool:
        """Undoing chunks did not help."""
        return self._state.diverged

    @property
    def suspects(self) -> bool:
        """The latest chunk was undone for a loss that the next one may show to be no damage.

        For that it has to run at the size from before.
        """
        return self._state.suspected or self.trial is not None

    @property
    def snapshot(self) -> WeightCopy:
        """The copy."""
        return self._snapshot

    def undone(self, began: int) -> str:
        """Return in words how far the guard went back, for a chunk that began after that step."""
        began = began if self.trial is None else self.trial.began
        said = f"undone: the weights are those after step {self.copied_at}"
        if self.copied_at == began:
            return said
        return f"{said}, of the latest copy; the chunk began after step {began}"

    def begin_chunk(self, *, touched: bool, rises: bool, step: int = 0) -> None:
        """Copy the weights if they may be needed.

        Where a copy before each chunk would take long, one is made only before a rise of the batch
        size, from which damage comes. A chunk without a rise is then undone with those before it,
        back to that copy.

        Args:
            touched: The controller has changed the batch size before.
            rises: The chunk has a larger batch size than the one before.
            step: Optimizer steps so far.
        """
        self._began = time.perf_counter()
        if self._config is None:
            return
        self._snapshot.begin()
        if not touched or self.trial is not None:
            return
        if rises or not self._snapshot.taken or self.copies_often:
            self._take(step)
            self._seconds = time.perf_counter() - self._began

    def resume_chunk(self, *, touched: bool, step: int = 0) -> None:
        """Go on within a chunk whose state was loaded; without a copy in it, make one now."""
        self._began = time.perf_counter()
        if self._config is not None and touched and not self._snapshot.taken:
            self._take(step)

    def _take(self, step: int) -> None:
        self._snapshot.take()
        self.copied_at, self._state_then = step, self._state

    def choose_copies(self) -> int:
        """Return whether the next chunk begins with a copy, by this process's clock: 1 or 0."""
        self.copies_often = int(self._seconds < _CHEAP * self._chunk_seconds)
        return self.copies_often

    def end_chunk(
        self,
        measured: ChunkMeasurement,
        batch_size: int,
        before: int,
        *,
        began: int = 0,
        step: int = 0,
    ) -> bool:
        """Return whether the chunk did damage and was undone, if only on trial.

        Args:
            measured: The chunk's losses, read from the device.
            batch_size: Of the chunk.
            before: Of the chunk before.
            began: Optimizer steps at its start.
            step: Optimizer steps so far.
        """
        self._chunk_seconds = time.perf_counter() - self._began
        if self._config is None:
            return False
        chunk = ChunkLoss(
            batch_size,
            measured.steps,
            measured.train_loss,
            measured.train_loss_std,
            measured.nonfinite_losses,
            changed=batch_size != before,
        )
        was = self._state
        damaged, state = judge(was, self._config, chunk)
        if damaged and not self._snapshot.taken:
            return False  # a run at the user's own batch size takes the user's own course
        self._state = state
        if not damaged:
            return False
        self._state = _with_losses_of(self._state_then, state)
        if chunk.nonfinite or state.diverged:
            self._snapshot.restore()
            self._count(chunk, before, was)
        else:
            self._snapshot.exchange()
            self.trial = Trial(chunk, was, before, began, step)
        return True

    def end_trial(self, step: int, loss: float = math.nan, samples: int = 1) -> bool:
        """Return whether the chunk on trial did damage; else its weights are back.

        Args:
            step: Optimizer steps so far.
            loss: Mean of the first step with the weights from before; NaN: there is none.
            samples: Of that step.
        """
        trial, self.trial = self.trial, None
        if trial is None or self._config is None:
            return False
        tried = ChunkLoss(samples, 1, loss, 0.0)
        was_first = step == trial.step + 1  # else others have changed these weights since
        if was_first and rises_the_same(trial.before, self._config, trial.chunk, tried):
            self._snapshot.restore()
            self._state = self._state_then = kept_level(trial.before, trial.chunk)
            self.copied_at = trial.step
            return False
        self._count(trial.chunk, trial.size_before, trial.before)
        self._take(step)
        return True

    def _count(self, chunk: ChunkLoss, before: int, was: GuardState) -> None:
        self.count += 1
        if self._ranks.is_main:
            _say(chunk, before, was.recent_loss, self.copied_at)

    def state_dict(self, *, within_chunk: bool) -> dict[str, Any]:
        """Return the losses to compare with and, if it may be needed, the copy of the weights.

        Args:
            within_chunk: A chunk is under way; the next one would begin with a copy of its own.
        """
        trial = self.trial
        copied = (within_chunk or trial is not None) and self._snapshot.taken
        return {
            "guard": asdict(self._state),
            "count": self.count,
            "copied_at": self.copied_at,
            "guard_then": asdict(self._state_then),
            "trial": None if trial is None else asdict(trial),
            "copy": self._snapshot.state_dict() if copied else None,
            "changing": self._snapshot.changing(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; without a copy in the state, the chunk is undone to where the run goes on."""
        self._state = GuardState(**state["guard"])
        self.count, self.copied_at = state["count"], state["copied_at"]
        self._state_then = GuardState(**state["guard_then"])
        self._snapshot.taken = False
        self._snapshot.load_changing(state.get("changing"))
        copy, trial = state["copy"], state.get("trial")
        if copy is not None and self._config is not None:
            self._snapshot.load_state_dict(copy)
        self.trial = None
        if trial is not None and self._snapshot.taken:
            chunk, before = ChunkLoss(**trial["chunk"]), GuardState(**trial["before"])
            self.trial = Trial(chunk, before, trial["size_before"], trial["began"], trial["step"])


def _with_losses_of(then: GuardState, state: GuardState) -> GuardState:
    """Return a state with an earlier one's losses: weights that are put back have those."""
    return replace(
        state,
        lowest_loss=then.lowest_loss,
        recent_loss=then.recent_loss,
        sample_variance=then.sample_variance,
        weight=then.weight,
        last_loss=then.last_loss,
    )


def _say(chunk: ChunkLoss, before: int, recent: float, copied_at: int) -> None:
    loss = "was not finite" if chunk.nonfinite else f"rose from {recent:.4g} to {chunk.mean:.4g}"
    size = f"at batch size {chunk.batch_size}"
    if chunk.changed:
        size = f"after the batch size had changed from {before} to {chunk.batch_size}"
    warnings.warn(
        f"rlbatch: the loss {loss} {size}. These steps are undone: what the optimizer holds and "
        f"the model's buffers are those after step {copied_at} again. Other copies of weights, "
        "such as a moving average, are put back if controller.on_rollback knows them.",
        RuntimeWarning,
        stacklevel=8,
    )
