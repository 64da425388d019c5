"""What everything has in common that hands out windows of a changing size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlbatch.actuation.delivery import Delivered, DeliveryQueue
from rlbatch.actuation.window import check_batch_size, check_micro_batch_size
from rlbatch.errors import ConfigurationError, DeliveryError

_STATE_VERSION = 1


class ElasticSource:
    """Sizes that may change between two windows, the queue of those under way, and the place.

    A subclass iterates: it registers each window that it issues with the queue.

    Attributes:
        drop_last: Whether samples that do not fill the epoch's last window are left out.
        measure_next: Says of a window's number whether it is to be split in two or more
            micro-batches; None splits none for that.
    """

    def __init__(
        self, batch_size: int, micro_batch_size: int | None, drop_last: bool, world_size: int = 1
    ) -> None:
        """Start in front of the first epoch.

        Args:
            batch_size: Samples of an optimizer step on all ranks together.
            micro_batch_size: Most samples of one forward pass on one rank; None for no limit.
            drop_last: See the attribute.
            world_size: Ranks that share a window equally.

        Raises:
            ConfigurationError: A size is out of range.
        """
        check_batch_size(batch_size, world_size)
        check_micro_batch_size(micro_batch_size)
        self.drop_last = drop_last
        self.measure_next: Callable[[int], bool] | None = None
        self._world_size = world_size
        self._requested, self._micro_limit = batch_size, micro_batch_size
        self._queue = DeliveryQueue()
        self._next_epoch = self._iteration = 0
        self._exhausted = False

    @property
    def requested_batch_size(self) -> int:
        """Batch size of the windows that are yet to be issued."""
        return self._requested

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next when the last has been consumed whole."""
        return self._queue.epoch + self._is_complete()

    @property
    def position(self) -> int:
        """Samples of the epoch consumed so far, in whole windows on all ranks together."""
        return self._queue.position

    @property
    def windows(self) -> int:
        """Windows consumed since the start of the run."""
        return self._queue.windows

    def set_batch_size(self, batch_size: int) -> None:
        """Change the batch size, from the next window that is issued.

        Raises:
            ConfigurationError: It is not positive, or the ranks cannot share it equally.
        """
        check_batch_size(batch_size, self._world_size)
        self._requested = batch_size

    def set_micro_batch_size(self, micro_batch_size: int | None) -> None:
        """Change the limit of a forward pass, from the next window that is issued."""
        check_micro_batch_size(micro_batch_size)
        self._micro_limit = micro_batch_size

    def next_delivered(self) -> Delivered:
        """Return the plan of the micro-batch that was just yielded.

        Raises:
            DeliveryError: It was called more often than batches were yielded.
        """
        return self._queue.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the run behind the last window that was consumed whole."""
        return {
            "version": _STATE_VERSION,
            "epoch": self._queue.epoch,
            "position": self._queue.position,
            "windows": self._queue.windows,
            "batch_size": self._requested,
            "complete": self._is_complete(),
        }

    def _go_to(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; iterators from before are of no use any more."""
        if state.get("version") != _STATE_VERSION:
            raise ConfigurationError(
                f"Expected the state of an {type(self).__name__}, version {_STATE_VERSION}, got "
                f"version {state.get('version')!r}. Load it with the rlbatch that saved it."
            )
        self.set_batch_size(state["batch_size"])
        self._iteration += 1
        self._exhausted = False
        complete: bool = state["complete"]
        self._next_epoch = state["epoch"] + complete
        self._queue.windows = state["windows"]
        self._queue.start(self._next_epoch, 0 if complete else state["position"])

    def _begin_iteration(self) -> int:
        """Return the number of the iteration that begins."""
        self._iteration += 1
        self._exhausted = False
        return self._iteration

    def _require_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise DeliveryError(
                f"Expected one iterator at a time over an {type(self).__name__}, and a second one "
                "was started. Make one loader for each loop."
            )

    def _measures_next(self) -> bool:
        measure = self.measure_next
        return measure is not None and measure(self._queue.issued_windows)

    def _is_complete(self) -> bool:
        return self._exhausted and not len(self._queue)
