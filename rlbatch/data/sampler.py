"""A batch sampler whose batch size may change after any optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rlbatch.data.delivery import IssuedStep
from rlbatch.data.elastic import ElasticSource
from rlbatch.data.order import TAIL, EpochOrder, Lookahead, ShuffledSampler
from rlbatch.data.step_plan import check_ranks, plan_step, share_start
from rlbatch.errors import ConfigurationError

__all__ = ["ElasticBatchSampler", "ShuffledSampler"]

_plan_step = lru_cache(maxsize=64)(plan_step)  # sizes repeat from step to step


class ElasticBatchSampler(ElasticSource, Sampler[list[int]]):
    """Yields one list of indices for each micro-batch; the batch size may change at any step.

    Each epoch visits each sample of the sampler exactly once, whatever the sizes. The position is
    counted in samples. For each batch that the loader yields, call `next_delivered` once: it says
    which step and which part of it has arrived, however far workers have prefetched.

    There is no `len()`: the number of micro-batches of an epoch depends on sizes yet to be decided.
    There is no `batch_size` either: frameworks would read it once and compare with it later.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        *,
        micro_batch_size: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Wrap a sampler.

        Args:
            sampler: Gives the order of an epoch; with several ranks the same on each, for example a
                `ShuffledSampler`.
            batch_size: Samples of an optimizer step on all ranks together.
            micro_batch_size: Most samples of one forward pass on one rank; None for no limit.
            drop_last: Leave out the samples that do not fill the epoch's last step.
            rank: This process.
            world_size: Number of processes; they share each step equally.

        Raises:
            ConfigurationError: A size or rank is out of range, or the ranks' orders would differ.
        """
        check_ranks(rank, world_size)
        _check_common_order(sampler, world_size)
        super().__init__(batch_size, micro_batch_size, drop_last, world_size)
        self.sampler = sampler
        self.persistent_workers = False
        """Whether the loader keeps its workers; needed to resume with the same random numbers."""
        self.on_first_step: Callable[[list[int]], None] | None = None
        """Is shown the samples of the next step that is issued, once."""
        self._rank = rank
        self._order = EpochOrder(sampler)
        self.epoch_size = self._order.size

    @property
    def rank(self) -> int:
        """The rank whose share is handed out."""
        return self._rank

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: as in torch's own, nothing is drawn before the first batch is asked for.
        iteration = self._begin_iteration()
        steps = self._start_epoch()
        start = self._queue.position
        while True:
            planned, size = self._next_planned() if self._planned else (None, self._requested)
            if planned is None and self._world_size == 1 and size != self._first_size:
                size = self._joined(size, start)
            step = steps.take(size)
            if not step:
                break
            if self.begun_at is None:
                self.begun_at = torch.get_rng_state()
            if self.on_first_step is not None:
                (look, self.on_first_step) = self.on_first_step, None
                look(step)
            limit = self._micro_limit
            if planned is None and self._world_size == 1 and not (limit and len(step) > limit):
                self._queue.issue_whole(self._requested, len(step), limit, start, step[-TAIL:])
                parts = [step]  # nearly always
            else:
                parts = self._issue(planned, step, start)
            for indices in parts:
                yield indices
                if iteration != self._iteration:
                    self._require_current(iteration)
            start += len(step)
        self._exhausted = True

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the epoch, if it shuffles by it; loops do so by `loader.sampler`."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def state_dict(self, rewind_to: Tensor | None = None) -> dict[str, Any]:
        """Return the place in the run and how its epoch's order was drawn; see the base class."""
        return {**super().state_dict(rewind_to), "order": self._current_order(rewind_to)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`: the next iteration yields the rest of its epoch.

        If its epoch had been consumed whole, the next iteration is the epoch behind it; `epoch`
        says which. Nothing is skipped or repeated when the number of ranks is another than it was.

        Raises:
            ConfigurationError: The state is of another version.
        """
        self._check(state)
        order = state["order"]
        self._order.check(order)
        self._go_to(state)
        self._resume_from = None
        if state["complete"]:
            self._order.finish(order, state["position"], state["tail"])
        elif order:
            self._resume_from = order

    def _start_epoch(self) -> Lookahead:
        epoch = self._next_epoch
        self._next_epoch += 1
        if self._resume_from is None:
            self._planned.clear()
            self._queue.start(epoch, 0)
            indices = self._order.begin(epoch, after_seed=not self.persistent_workers)
        else:
            order, self._resume_from = self._resume_from, None
            position, tail = self._queue.position, self._queue.tail
            self._queue.start(epoch, position, tail)
            indices = self._order.resume(order, position, tail)
        return Lookahead(
            indices, self._world_size, self.drop_last, self.least_rest, self.largest_step
        )

    def _issue(self, planned: IssuedStep | None, step: list[int], start: int) -> list[list[int]]:
        issued = self._step(planned, len(step), start, step[-TAIL:])
        plan = _plan_step(
            issued.samples,
            issued.micro_batch_size,
            self._world_size,
            rank=self._rank,
        )
        offset = 0
        if self._world_size > 1:
            offset = share_start(len(step), self._world_size, self._rank)
        self._queue.issue(issued, plan, offset)
        parts: list[list[int]] = []
        for size in plan.sizes:
            parts.append(step[offset : offset + size])
            offset += size
        return parts

    def _current_order(self, rewind_to: Tensor | None) -> dict[str, Any]:
        # Between load_state_dict and the first batch, the order is still the one that was loaded.
        if self._resume_from is not None:
            return self._resume_from
        return self._order.state_dict(rewind_to)

    def _is_complete(self) -> bool:
        if len(self._queue) or self._resume_from is not None:
            return False
        if super()._is_complete():
            return True
        # Whether drop_last leaves out the rest depends on sizes yet to be decided.
        size = self._order.size
        return bool(size) and self._queue.position >= size


def _check_common_order(sampler: Iterable[int], world_size: int) -> None:
    """Refuse samplers from which the ranks would get different orders, or parts of one."""
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise ConfigurationError(
            "Expected a sampler of the whole epoch, got a DistributedSampler, which gives each "
            "rank only its part. Pass ShuffledSampler(len(dataset), seed), rank and world_size."
        )
    unseeded = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    has_generator = getattr(sampler, "generator", None) is not None
    if world_size > 1 and isinstance(sampler, unseeded) and not has_generator:
        raise ConfigurationError(
            f"Expected the same order on each of {world_size} ranks, got a "
            f"{type(sampler).__name__} without a generator. Pass ShuffledSampler(len(dataset), "
            "seed), or a generator with the same seed on each rank."
        )
