"""Which samples go into which optimizer step where no torch loader hands them out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rlbatch.control.few_sizes import PowersOfTwo
from rlbatch.control.loader import least_rest
from rlbatch.data.delivery import Delivered
from rlbatch.data.sampler import ElasticBatchSampler
from rlbatch.errors import ConfigurationError, DeliveryError

_PEEKS = 2  # batches that may be looked at before the training begins, beyond those prefetched


@dataclass(frozen=True)
class Issued:
    """The samples of one optimizer step, on their way to the model.

    Attributes:
        indices: Of the samples.
        epoch: Number of the epoch.
        start: Place of the first sample in the epoch's order.
        is_peek: Nothing is trained on it.
    """

    indices: list[int]
    epoch: int
    start: int
    is_peek: bool = False


class StepPlanner:
    """Plans optimizer steps for a data pipeline that may read ahead, in another thread too.

    What the pipeline takes is queued; what reaches the model is checked against the queue. A change
    of the size takes effect at a step that is known when it is decided: the first one that neither
    was issued nor may be by the time that the pipeline gets to it, so that runs repeat.

    Attributes:
        size: Samples of an epoch.
        base_batch_size: The user's batch size.
        lag: Optimizer steps that the pipeline reads ahead.
        sizes: Sizes that are allowed; None for any.
        lock: Held while a size is decided.
        error: What went wrong in the pipeline, where exceptions change their type.
    """

    def __init__(
        self,
        order: Iterable[int],
        size: int,
        base_batch_size: int,
        lag: int = 0,
        remedy: str = "Train on the controller's data alone, and under the controller.",
    ) -> None:
        """Stand before the first epoch.

        Args:
            order: An iteration of it gives the order of an epoch.
            size: Samples of an epoch.
            base_batch_size: The user's batch size.
            lag: Optimizer steps that the pipeline reads ahead.
            remedy: What to do where other batches come than were planned; a sentence.
        """
        self._remedy = remedy
        self.size, self.base_batch_size, self.lag = size, base_batch_size, lag
        self.sizes: PowersOfTwo | None = None
        self.lock = threading.RLock()
        self.error: Exception | None = None
        self._sampler = ElasticBatchSampler(order, base_batch_size)
        self._sampler.epoch_size = size
        self._least = least_rest(size, base_batch_size, 1)
        self._current = base_batch_size  # of the steps that are issued now
        self._coming: deque[tuple[int, int]] = deque()  # from which step, which size
        self._claimable = self._in_hand = False
        self._in_pieces = False  # the epoch's rest is made in several steps, each of a size its own

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, or of the next one."""
        return self._sampler.epoch

    @property
    def position(self) -> int:
        """Samples of the epoch that have arrived."""
        return self._sampler.position

    @property
    def resumes_within_epoch(self) -> bool:
        """Whether the next iteration goes on with an epoch that was interrupted."""
        return self._sampler.resumes_within_epoch

    @property
    def next_step(self) -> int:
        """Number of the optimizer step at which a change that is decided now takes effect."""
        sampler = self._sampler
        return max(sampler.next_step, sampler.steps + self.lag)

    def set_batch_size(self, batch_size: int) -> None:
        """Change the size of the optimizer steps from `next_step` on."""
        with self.lock:
            latest = self._coming[-1][1] if self._coming else self._current
            if batch_size != latest:
                self._coming.append((self.next_step, batch_size))

    def open_epoch(self) -> None:
        """The next iteration is the one that is trained on."""
        with self.lock:
            self._claimable, self._in_hand, self.error = True, False, None

    def iterate(self) -> Iterator[Issued]:
        """Hand out an epoch, or what is left of an interrupted one.

        A framework may look at a first batch before it trains: iterations outside of an epoch hand
        out a little and count nothing.

        Raises:
            DeliveryError: Somebody goes on reading without a controller.
        """
        with self.lock:
            claimed, self._claimable = self._claimable, False
            self._in_pieces = self._in_pieces and self._sampler.resumes_within_epoch
            sampler = self._sampler
            resumes = sampler.resumes_within_epoch
            start = sampler.position if resumes else 0
            number = sampler.next_step if resumes else sampler.steps
        if not claimed:
            yield from self._peek()
            return
        steps = iter(sampler)
        while True:
            with self.lock:
                self._size_of(number, self.size - start)
                indices = next(steps, None)
                number = sampler.next_step
            if indices is None:
                return
            yield Issued(indices, self._sampler.epoch, start)
            start += len(indices)

    def _peek(self) -> Iterator[Issued]:
        indices = list(range(min(self.base_batch_size, self.size)))
        for _ in range(_PEEKS + self.lag):
            yield Issued(indices, 0, 0, is_peek=True)
        self.error = DeliveryError(
            f"The data of a controller is trained on without it. {self._remedy}"
        )
        raise self.error

    def _size_of(self, number: int, left: int) -> None:
        """Tell the sampler the size of the step that is issued next."""
        while self._coming and self._coming[0][0] <= number:
            self._current = self._coming.popleft()[1]
        size = self._current
        if self.sizes is not None and 0 < left < size:
            piece = self.sizes.piece(left)
            # A rest in one piece is a smaller batch of the size in force, as in every other run.
            self._in_pieces = self._in_pieces or piece < left
            size = piece if self._in_pieces else size
        # Sizes that are compiled are not to be others than those.
        self._sampler.least_rest = self._least if self.sizes is None else 1
        self._sampler.set_batch_size(size)

    def arrive(self, samples: int) -> Delivered:
        """Return the plan of the batch that has reached the model.

        Args:
            samples: That it holds.

        Raises:
            DeliveryError: It is not the batch that was planned.
        """
        with self.lock:
            try:
                plan = self._sampler.next_delivered()
            except DeliveryError:
                raise DeliveryError(
                    "A batch reached the model that the controller did not plan. " + self._remedy
                ) from None
            self._in_hand = True
        if samples != plan.step_samples:
            raise DeliveryError(
                f"Optimizer step {plan.step} was planned with {plan.step_samples} samples, and "
                f"{samples} reached the model. Leave out what regroups or drops samples after "
                "they were planned: batch, unbatch, filter, shuffle, take."
            )
        return plan

    def end_step(self) -> None:
        """Take note that the model has made the step that it had in its hands."""
        self._in_hand = False

    def is_complete(self, plan: Delivered) -> bool:
        """Whether nothing of the epoch comes after a step."""
        return plan.step_start + plan.step_samples >= self.size

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last optimizer step, in what `torch.load` reads safely."""
        with self.lock:
            again = torch.get_rng_state() if self._in_hand else None
            return {
                "sampler": self._sampler.state_dict(again),
                "current": self._current,
                "coming": [list(change) for change in self._coming],
                "in_pieces": self._in_pieces,
                "size": self.size,
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there.

        Raises:
            ConfigurationError: The epoch had another number of samples.
        """
        if state["size"] != self.size:
            raise ConfigurationError(
                f"The state is of a run with {state['size']} samples in an epoch, and this one has "
                f"{self.size}. Resume with the same data."
            )
        with self.lock:
            self._sampler.load_state_dict(state["sampler"])
            self._current = state["current"]
            self._in_pieces = state["in_pieces"]
            self._coming = deque((number, size) for number, size in state["coming"])
            self._claimable = self._in_hand = False
