"""Halves the micro-batches of a run that is out of memory, and lets the batch come again."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from rlbatch.control.memory import MemoryGauge, MicroBatchLimit, is_out_of_memory
from rlbatch.control.ranks import Ranks
from rlbatch.errors import MemoryUsedUpError


class MemoryGuard:
    """Watches the passes of a step, on each rank, and what the ranks agree on.

    With several ranks, one that is out of memory must not leave the others waiting for its
    gradient. So they first tell each other how the step went, and average gradients only where
    all of them have one: a small collective more for each step. Where the model is sharded the
    others wait for this rank's shards in the middle of the pass, and nothing can be told them: then
    the limit follows what passes need, and one that fails nevertheless is the end of the run.

    Attributes:
        limit: Most samples of a pass, in force on all ranks.
        active: A pass is under way.
    """

    def __init__(self, gauge: MemoryGauge, limit: int | None, *, adapts: bool, ranks: Ranks):
        """Start with a limit.

        Args:
            gauge: Measures.
            limit: Most samples of a pass; None for no limit.
            adapts: Raise the limit to what fits.
            ranks: The processes that train together.
        """
        self._gauge, self._adapts, self._ranks = gauge, adapts, ranks
        self._own = MicroBatchLimit(limit)
        self.limit, self.active = limit, False
        self._failed = 0  # samples of the pass that failed

    @contextmanager
    def watch(self, samples: int) -> Generator[None]:
        """Return the block of a pass; an error for lack of memory is taken note of and swallowed.

        Args:
            samples: Of the pass. A single one that does not fit is an error.

        Raises:
            MemoryUsedUpError: The model is sharded.
        """
        self.active = True
        try:
            with self._gauge.watch():
                yield
        except (RuntimeError, MemoryError) as error:
            if samples == 1 or not is_out_of_memory(error):
                raise
            if self._ranks.sharded:
                raise MemoryUsedUpError(
                    f"A pass of {samples} samples ran out of memory on rank {self._ranks.rank}, "
                    "and the other ranks wait for its shards of the model: the run cannot go on. "
                    "Resume from the last checkpoint with a lower memory_limit, or with "
                    f"micro_batch_size={samples // 2}."
                ) from error
            self._failed = samples
            # What the pass had allocated hangs on the locals of its functions, these on the error's
            # traceback, and in Python 3.12 that on itself: nothing would be free before the
            # garbage collector comes.
            traceback.clear_frames(error.__traceback__)
        finally:
            self.active = False
        if self._failed:
            self._gauge.release()
        elif self._adapts:
            self._own = self._own.after_pass(samples, self._gauge.needed(), self._gauge.free())

    def settle(self) -> int:
        """Return the samples of the largest pass that failed on any rank in this step, or 0.

        Every rank calls it once a step: behind its last backward pass, or where it failed.
        """
        unlimited = 2**62
        own = self._own.limit or unlimited
        failed, negative = self._ranks.largest(self._failed, -own)
        self._failed = 0
        if failed:
            self._own = self._own.after_failure(failed)
            self.limit = self._own.limit
        elif self._adapts and -negative < unlimited:
            self.limit = -negative
        return failed

    @property
    def has_failed(self) -> bool:
        """Whether a pass of this step failed on this rank, and nobody was told."""
        return self._failed > 0

    def average_gradients(self, model: nn.Module) -> None:
        """Average over ranks what `DistributedDataParallel` was kept from averaging."""
        self._ranks.average_gradients(model)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"own": self._own.state_dict(), "limit": self.limit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._own, self.limit = MicroBatchLimit.from_state(state["own"]), state["limit"]
