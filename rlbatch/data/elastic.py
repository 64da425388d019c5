"""What everything has in common that hands out steps of a changing size."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlbatch.data.delivery import DeliveryQueue, IssuedStep
from rlbatch.data.step_plan import check_batch_size, check_micro_batch_size, last_but_one
from rlbatch.errors import ConfigurationError, DeliveryError

_STATE_VERSION = 2


class ElasticSource:
    """Sizes that may change between two steps, the queue of those under way, and the place.

    A subclass iterates: it asks `_next_planned` for each step's size and registers what it issues
    with the queue. After `load_state_dict`, the steps that were under way when the state was
    taken come first, with the sizes they had: a resumed run changes sizes where the uninterrupted
    one does, however far workers have prefetched.

    Attributes:
        drop_last: Whether samples that do not fill the epoch's last step are left out.
        least_rest: A step of another size than the first leaves no fewer samples at an epoch's end:
            they join it. Several ranks leave no fewer behind any step.
        largest_step: Where a step with the rest that joins it exceeds it, they are shared out anew:
            both of about the same size; None for no limit.
        epoch_size: Samples of an epoch, where that is known.
        begun_at: Torch's global random state when this iteration's order was drawn and nothing
            read yet; None before.
        next_delivered: Returns the plan of the micro-batch that was just yielded; DeliveryError
            where it is called more often than batches were yielded.
    """

    def __init__(
        self, batch_size: int, micro_batch_size: int | None, drop_last: bool, world_size: int = 1
    ) -> None:
        """Start in front of the first epoch.

        Args:
            batch_size: Samples of an optimizer step on all ranks together.
            micro_batch_size: Most samples of one forward pass on one rank; None for no limit.
            drop_last: See the attribute.
            world_size: Ranks that share a step equally.

        Raises:
            ConfigurationError: A size is out of range.
        """
        check_batch_size(batch_size, world_size)
        check_micro_batch_size(micro_batch_size)
        self.drop_last = drop_last
        self.least_rest = world_size
        self.largest_step: int | None = None
        self.epoch_size: int | None = None
        self._world_size = world_size
        self._requested, self._micro_limit = batch_size, micro_batch_size
        self._first_size = batch_size
        self._queue = DeliveryQueue()
        self.next_delivered = self._queue.pop
        self.begun_at: Tensor | None = None
        self._resume_from: dict[str, Any] | None = None  # how the interrupted epoch was drawn
        self._planned: deque[IssuedStep] = deque()  # to come again, before any other
        self._next_epoch = self._iteration = 0
        self._exhausted = False

    @property
    def requested_batch_size(self) -> int:
        """Batch size of the steps that are yet to be issued."""
        return self._requested

    @property
    def world_size(self) -> int:
        """Ranks that share each step."""
        return self._world_size

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next when the last has been consumed whole."""
        return self._queue.epoch + self._is_complete()

    @property
    def position(self) -> int:
        """Samples of the epoch consumed so far, in whole steps on all ranks together."""
        return self._queue.position

    @property
    def steps(self) -> int:
        """Windows consumed since the start of the run."""
        return self._queue.steps

    @property
    def next_step(self) -> int:
        """Number of the first step whose size is open: a change takes effect there."""
        return self._queue.issued_steps + len(self._planned)

    @property
    def within_step(self) -> bool:
        """Whether a part of a step has arrived, and not all of it."""
        return self._queue.within_step

    @property
    def resumes_within_epoch(self) -> bool:
        """Whether the next iteration goes on with an epoch that was interrupted."""
        return self._resume_from is not None

    def resume_as_now(self) -> None:
        """Let the interrupted epoch go on with torch's random state of now, not the saved one."""
        if self._resume_from is not None:
            self._resume_from = _with_torch_state(self._resume_from, torch.get_rng_state())

    def set_batch_size(self, batch_size: int) -> None:
        """Change the batch size, from the next step that is issued.

        Raises:
            ConfigurationError: It is not positive, or the ranks cannot share it equally.
        """
        check_batch_size(batch_size, self._world_size)
        self._requested = batch_size

    def set_micro_batch_size(self, micro_batch_size: int | None) -> None:
        """Change the limit of a forward pass, from the next step that is issued."""
        check_micro_batch_size(micro_batch_size)
        self._micro_limit = micro_batch_size

    def state_dict(self, rewind_to: Tensor | None = None) -> dict[str, Any]:
        """Return the place in the run, in what `torch.load` reads with `weights_only=True`.

        It is the one behind the last step that arrived whole. To a loop that has not stepped with
        it yet, that step would be lost.

        Args:
            rewind_to: Torch's global random state from before the latest step was loaded: with
                it, the state is the one in front of that step.
        """
        place, under_way = self._queue.place(again=rewind_to is not None)
        return {
            "version": _STATE_VERSION,
            **place,
            "under_way": [
                [step.batch_size, step.samples, step.micro_batch_size]
                for step in (*under_way, *self._planned)
            ],
            "world_size": self._world_size,
            "batch_size": self._requested,
            "complete": not under_way and self._is_complete(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` with the next iteration."""
        raise NotImplementedError

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of another version, and one that is damaged."""
        if state.get("version") != _STATE_VERSION:
            raise ConfigurationError(
                f"Expected the state of an {type(self).__name__}, version {_STATE_VERSION}, got "
                f"version {state.get('version')!r}. Load it with the rlbatch that saved it."
            )
        if not all(isinstance(name, str) for name in state["tail"]):
            raise ConfigurationError(
                "The saved place in the data is damaged: its samples have no names. Resume from "
                "another checkpoint, or start anew."
            )

    def _go_to(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; iterators from before are of no use any more."""
        self._check(state)
        self.set_batch_size(state["batch_size"])
        self._iteration += 1
        self._exhausted = False
        complete: bool = state["complete"]
        self._next_epoch = state["epoch"] + complete
        self._queue.steps = state["steps"]
        place = (0, ()) if complete else (state["position"], state["tail"])
        self._queue.start(self._next_epoch, *place)
        # Other ranks could not always share these steps: they are planned anew.
        same_ranks = state["world_size"] == self._world_size
        # Older states say, fourth, whether a step was to be divided for a measurement.
        self._planned = deque(IssuedStep(*w[:3]) for w in state["under_way"] if same_ranks)

    def _next_planned(self) -> tuple[IssuedStep | None, int]:
        """Return the next step's plan from before a resume, if there is one, and its size."""
        planned = self._planned.popleft() if self._planned else None
        return planned, self._requested if planned is None else planned.samples

    def _joined(self, size: int, start: int) -> int:
        """Return a step's size with what would be left of the epoch behind it, if that is little.

        Looks ahead in counts only, so that nothing is drawn from the order that is not used.
        """
        if self.epoch_size is None or self.drop_last or size == self._first_size:
            return size
        left = self.epoch_size - start
        if not 0 < left - size < self.least_rest:
            return size
        return last_but_one(left, self.largest_step, self.least_rest)

    def _step(
        self, planned: IssuedStep | None, samples: int, start: int, tail: Sequence[Any]
    ) -> IssuedStep:
        """Return the step that is issued now, with the samples that there were for it."""
        if planned is None:
            return IssuedStep(self._requested, samples, self._micro_limit, start, tail)
        limits = [limit for limit in (planned.micro_batch_size, self._micro_limit) if limit]
        return planned._replace(
            samples=samples,
            start=start,
            tail=tail,
            # A smaller limit than before the resume is there for a reason: memory.
            micro_batch_size=min(limits, default=None),
        )

    def _begin_iteration(self) -> int:
        """Return the number of the iteration that begins."""
        self._iteration += 1
        self._exhausted = False
        self.begun_at = None
        return self._iteration

    def _require_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise DeliveryError(
                f"Expected one iterator at a time over an {type(self).__name__}, and a second one "
                "was started. Make one loader for each loop."
            )

    def _is_complete(self) -> bool:
        return self._exhausted and not len(self._queue)


def _with_torch_state(order: dict[str, Any], state: Tensor) -> dict[str, Any]:
    """Return what is known of an epoch's order, with another state of torch to go on with."""
    now = dict(order.get("now", {}))
    if "torch" in now:
        now["torch"] = state
    if "torch" in now.get("global", {}):
        now["global"] = {**now["global"], "torch": state}
    return {**order, "now": now}
