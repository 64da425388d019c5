"""What was issued to the data pipeline, and what of it has arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from rlbatch.data.step_plan import StepPlan
from rlbatch.errors import DeliveryError


class Delivered(NamedTuple):
    """One micro-batch, as it was planned when its indices were issued.

    Attributes:
        step: Number of the optimizer step since the start of the run.
        batch_size: Batch size that was in force when the step was issued.
        position: Place of the micro-batch in its step, from 0.
        micro_batches: Micro-batches of the step on this rank.
        micro_size: Samples of the micro-batch, on this rank.
        step_samples: Samples of the step on all ranks; at an epoch's end not `batch_size`.
        epoch: Number of the epoch.
        step_start: Place of the step's first sample in the epoch's order.
        first_sample: Place of the micro-batch's first sample in the epoch's order.
    """

    step: int
    batch_size: int
    position: int
    micro_batches: int
    micro_size: int
    step_samples: int
    epoch: int
    step_start: int
    first_sample: int

    @property
    def is_last(self) -> bool:
        """Whether the optimizer steps after this micro-batch."""
        return self.position == self.micro_batches - 1

    @property
    def step_end(self) -> int:
        """Samples of the epoch after the step."""
        return self.step_start + self.step_samples


class IssuedStep(NamedTuple):
    """One optimizer step, from its issue until it has arrived whole.

    Attributes:
        batch_size: Batch size that was in force when it was issued.
        samples: Its samples on all ranks; at an epoch's end not `batch_size`.
        micro_batch_size: Most samples of a forward pass at that time; None for no limit.
        start: Place of its first sample in the epoch's order.
        tail: Its last samples, by whose `appearance` the place is recognised.
    """

    batch_size: int
    samples: int
    micro_batch_size: int | None
    start: int = 0
    tail: Sequence[Any] = ()


class Seen(str):
    """A sample of which only its appearance is known."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def appearance(samples: Sequence[Any]) -> list[str]:
    """Return what samples look like: enough to recognise a place in an order."""
    return list(map(repr, samples))


_make = cast("Any", tuple).__new__  # of a named tuple: its own takes three times as long


class DeliveryQueue:
    """Plans of the micro-batches under way, and the count of the steps that arrived whole.

    The consumer pops one plan for each micro-batch that it gets. Whatever prefetching workers
    hold is in the queue and not in the counts, so a checkpoint of the counts loses and repeats
    nothing.
    """

    def __init__(self) -> None:
        """Start with nothing under way."""
        self._plans: deque[Delivered] = deque()
        self._under_way: deque[IssuedStep] = deque()
        self._latest: IssuedStep | None = None  # step that arrived whole
        self._before: Sequence[Any] = ()  # tail in front of it
        self.issued_steps = 0
        """Number of the next step to be issued."""
        self.steps = 0
        """Windows consumed since the start of the run."""
        self.position = 0
        """Samples consumed in this epoch, in whole steps."""
        self.tail: Sequence[Any] = ()
        """The last of these samples."""
        self.epoch = 0
        """Number of the epoch that the counts are of."""

    def __len__(self) -> int:
        """Return how many micro-batches are under way."""
        return len(self._plans)

    @property
    def within_step(self) -> bool:
        """Whether a part of a step has arrived, and not all of it."""
        return bool(self._plans) and self._plans[0].position > 0

    def start(self, epoch: int, position: int, tail: Sequence[str] = ()) -> None:
        """Begin an epoch; what an abandoned iterator left under way is forgotten.

        Args:
            epoch: Its number.
            position: Samples of it that are consumed already.
            tail: What the last of them look like.
        """
        self._plans.clear()
        self._under_way.clear()
        self._latest = None
        self.issued_steps = self.steps
        self.epoch, self.position, self.tail = epoch, position, [Seen(name) for name in tail]

    def issue(self, step: IssuedStep, plan: StepPlan, offset: int) -> None:
        """Take in a step: `offset` is where this rank's share starts among its samples."""
        self._under_way.append(step)
        number, epoch = self.issued_steps, self.epoch
        batch_size, samples, _, start, _ = step
        first, parts = start + offset, len(plan.sizes)
        for position, size in enumerate(plan.sizes):
            # In the order of the fields: by their names it takes twice as long.
            self._plans.append(
                Delivered(number, batch_size, position, parts, size, samples, epoch, start, first)
            )
            first += size
        self.issued_steps = number + 1

    def issue_whole(
        self, batch_size: int, samples: int, limit: int | None, start: int, tail: Sequence[Any]
    ) -> None:
        """Take in a step of a single micro-batch on the only rank, as nearly all are.

        Args:
            batch_size: Batch size that is in force.
            samples: Its samples.
            limit: Most samples of a forward pass; None for no limit.
            start: Place of its first sample in the epoch's order.
            tail: Its last samples.
        """
        number = self.issued_steps
        self._under_way.append(_make(IssuedStep, (batch_size, samples, limit, start, tail)))
        plan = (number, batch_size, 0, 1, samples, samples, self.epoch, start, start)
        self._plans.append(_make(Delivered, plan))
        self.issued_steps = number + 1

    def pop(self) -> Delivered:
        """Return the plan of the micro-batch that has just arrived.

        Raises:
            DeliveryError: No micro-batch is under way.
        """
        if not self._plans:
            raise DeliveryError(
                "Expected a micro-batch under way, and none is. Call next_delivered exactly once "
                "for each batch that the loader yields, after it was yielded."
            )
        delivered = self._plans.popleft()
        if delivered.position + 1 == delivered.micro_batches:
            done = self._under_way.popleft()
            self._latest, self._before = done, self.tail
            self.steps += 1
            self.position, self.tail = done.start + done.samples, done.tail
        return delivered

    def place(self, again: bool) -> tuple[dict[str, Any], list[IssuedStep]]:
        """Return where a resumed run goes on, and the steps that come next in it.

        Args:
            again: Whether the latest step, if it arrived whole, is to come again too.
        """
        place = {"steps": self.steps, "position": self.position, "tail": appearance(self.tail)}
        under_way = list(self._under_way)
        latest = self._latest
        if again and latest is not None and not self.within_step:
            under_way.insert(0, latest)
            place = {
                "steps": self.steps - 1,
                "position": latest.start,
                "tail": appearance(self._before),
            }
        return {"epoch": self.epoch, **place}, under_way
